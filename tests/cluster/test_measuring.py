"""Whole benchmarks of servers, small, with the tests' own server in the place of one they start."""

import asyncio
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import ModuleType

import httpx
import psutil
import pytest

from ops.bench import fairness, serve
from ops.bench.fairness_stage import BEHAVED, FLOODED
from ops.bench.server import Server, ServerCommand
from ops.bench.server import running as started
from tests.cluster.conftest import NUM_ENGINES, NUM_SEATS
from tests.cluster.fleet import fleet_when
from tests.cluster.load import BACK_WITHIN_S
from tests.cluster.program import Program
from tests.cluster.redeploy import Deployer

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

QUIET_SLOTS = 2


def parse(bench: ModuleType, *arguments: str) -> Namespace:
    parser = ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    bench.add_arguments(parser)
    return parser.parse_args(arguments)


@pytest.fixture
async def measured(server: Program, http: httpx.AsyncClient) -> Server:
    """The tests' server as a benchmark sees one."""
    card = (await http.get("/v1/models")).json()["data"][0]
    process = psutil.Process(server.process.pid)
    return Server("fastswitch", server.port, card["id"], card["max_model_len"], process)


async def test_bench_serve_sees_the_same_tokens_from_both_servers(
    measured: Server, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the plain vLLM server, which is started: all keys, equal outputs, all memory."""

    def running(command: ServerCommand) -> AbstractContextManager[Server]:
        return nullcontext(measured) if command.name == measured.name else started(command)

    monkeypatch.setattr(serve, "running", running)
    options = parse(
        serve,
        *("--model", str(tiny_model), "--streams", "4", "--requests", "8"),
        *("--repeats", "1", "--prompt-tokens", "8:32", "--output-tokens", "8:16"),
    )
    keys = (await asyncio.to_thread(serve.run, options)).keys
    assert keys["outputs_equal"] is True
    assert keys["throughput_ratio"] > 0
    assert "deployments.vllm_engine" in keys["memory_mb"]["fastswitch"]
    assert "haproxy" in keys["memory_mb"]["fastswitch"]
    assert "VLLM::EngineCore" in keys["memory_mb"]["baseline"]


async def test_bench_fairness_goes_through_all_phases(
    measured: Server,
    http: httpx.AsyncClient,
    tiny_model: Path,
    deployer: Deployer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every phase is answered, nobody is refused, and the flood is really there.

    Where it would start a second server the policy of this one changes, once more when it ends.
    """
    policies = iter(("vtc", "fcfs"))

    @contextmanager
    def running(_command: ServerCommand) -> Iterator[Server]:
        policy = next(policies)
        deployer.deploy({"fairness": {"policy": policy}})
        deployer.wait_until_deployed(within_s=2 * BACK_WITHIN_S)
        yield measured

    monkeypatch.setattr(fairness, "running", running)
    options = parse(
        fairness,
        *("--model", str(tiny_model), "--max-num-seqs", str(NUM_SEATS)),
        *("--replicas", str(NUM_ENGINES), "--quiet-slots", str(QUIET_SLOTS)),
        *("--duration-s", "6", "--repeats", "1", "--equal-s", "6"),
    )
    try:
        keys = (await asyncio.to_thread(fairness.run, options)).keys
    finally:
        await asyncio.to_thread(deployer.deploy)
        await fleet_when(http, lambda fleet: fleet.policy == "vtc", "the first policy is back")

    behaved = NUM_ENGINES * NUM_SEATS - QUIET_SLOTS
    assert keys["workload"]["neighbour_streams"] == {BEHAVED: behaved, FLOODED: 32 * behaved}
    assert keys["rejected"] == 0
    assert keys[FLOODED]["quiet_unanswered"] == 0
    assert keys[FLOODED]["quiet_requests"] == keys[BEHAVED]["quiet_requests"] > 10
    assert keys["isolation_ratio_fcfs"] > keys["isolation_ratio"]
