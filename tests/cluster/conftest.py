"""One server for all tests that need the whole system: two engines of the demo model, small."""

import json
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.demo_model import write_demo_model
from ops.metrics.stale_groups import groups_of
from tests.cluster.fleet import fleet_when
from tests.cluster.program import HOST, MODEL, Program, running
from tests.cluster.redeploy import Deployer
from tests.cluster.tenants import Tenants
from tests.ops.prometheus import PROGRAMS, pushgateway
from tests.ops.tracing.stand_in_collector import StandInCollector, stand_in_collector

NUM_ENGINES = 2
NUM_SEATS = 8  # requests that run at once, per engine
MAX_BODY_BYTES = 100_000
IDLE_WITHIN_S = 30.0
NO_LIMITS = httpx.Limits(max_connections=None)

SETTINGS: Mapping[str, Any] = {
    "max_num_seqs": NUM_SEATS,
    "kv_cache_gib": 0.25,
    "host_kv_gib": 0.25,
    "max_body_bytes": MAX_BODY_BYTES,
    "api_args": {"enable_auto_tool_choice": True, "tool_call_parser": "hermes"},
    # Finer than the defaults, so that a few seconds of service show the shares.
    "fairness": {"quantum": 128, "update_s": 0.02},
    "exchange_s": 0.05,
    "continuation_timeout_s": 240,  # for an engine to start on a machine that others use too
}


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that a CPU runs at thousands of tokens a second."""
    folder = tmp_path_factory.mktemp("models") / MODEL
    write_demo_model(folder, "tiny", seed=0)
    return folder


@pytest.fixture(scope="session")
def tenants(tmp_path_factory: pytest.TempPathFactory) -> Tenants:
    """The tenants file of the server: keys are off, weights are one and two."""
    return Tenants.write(tmp_path_factory.mktemp("tenants") / "tenants.yaml")


@pytest.fixture(scope="session")
def pushed_to() -> Iterator[str | None]:
    """The Pushgateway that the server pushes to; none where it is not installed."""
    if not PROGRAMS["prometheus-pushgateway"]:
        yield None
        return
    with pushgateway() as url:
        yield url


@pytest.fixture(scope="session")
def traced_to() -> Iterator[StandInCollector]:
    """The collector that the server sends spans to: of requests whose caller traces them."""
    with stand_in_collector() as collector:
        yield collector


@pytest.fixture(scope="session")
def settings(
    tiny_model: Path, tenants: Tenants, pushed_to: str | None, traced_to: StandInCollector
) -> Mapping[str, Any]:
    """The server's settings, by their names in ``args``."""
    metrics = {"metrics": {"push_url": pushed_to, "push_s": 1}} if pushed_to is not None else {}
    return {
        **SETTINGS,
        **metrics,
        "tracing": {"otlp_endpoint": traced_to.url, "sample_share": 0},
        "model": str(tiny_model),
        "device": "cpu",
        "replicas": NUM_ENGINES,
        "tenants_file": str(tenants.path),
        "peer_host": HOST,
    }


@pytest.fixture(scope="session")
def program(
    settings: Mapping[str, Any], pushed_to: str | None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Program]:
    """The server itself; most tests want ``server``. Its end is a test too, the last one."""
    log = tmp_path_factory.mktemp("server") / "log"
    options = {"model", "device", "replicas", "tenants_file"}
    arguments = [
        *(part for name in sorted(options) for part in (_option(name), str(settings[name]))),
        *(
            part
            for name in settings.keys() - options
            for part in ("--set", as_setting(name, settings[name]))
        ),
    ]
    with running(arguments, log) as program:
        yield program
    if pushed_to is not None:
        assert groups_of(pushed_to, "fastswitch") == []


def as_setting(name: str, value: Any) -> str:
    """What ``--set`` takes."""
    return f"{name}={json.dumps(value)}"


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")


@pytest.fixture
async def http(program: Program, tenants: Tenants) -> AsyncIterator[httpx.AsyncClient]:
    """A client that may ask for anything, also where keys are required."""
    async with httpx.AsyncClient(
        base_url=program.url,
        headers={"Authorization": f"Bearer {tenants.operator_key}"},
        timeout=240,
        limits=NO_LIMITS,
    ) as client:
        yield client


@pytest.fixture
async def server(program: Program, http: httpx.AsyncClient) -> AsyncIterator[Program]:
    """The server, idle before and after the test: no request of one test outlives it."""
    await fleet_when(http, lambda fleet: len(fleet.engines) == NUM_ENGINES, "both engines are up")
    yield program
    await fleet_when(
        http, lambda fleet: fleet.is_idle, "nothing is left of the requests", within_s=IDLE_WITHIN_S
    )


@pytest.fixture
def deployer(program: Program, settings: Mapping[str, Any], tmp_path: Path) -> Deployer:
    """The settings of the server, but for one of its engines'; hardly a request may finish."""
    changed = {**settings, "engine_args": {"seed": 1}, "drain_s": 0.2}
    return Deployer(program, changed, tmp_path)
