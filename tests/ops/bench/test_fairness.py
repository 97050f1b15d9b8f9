"""`bench fairness` compares what a quiet tenant sees beside one neighbour and another."""

import gzip
import json
from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from rich.console import Console

from app.errors import UsageError
from app.settings import AppArgs
from ops.bench import fairness
from ops.bench.errors import TraceError, UnevenLoadError
from ops.bench.fairness import compare, make_work, share_out, table, targets
from ops.bench.fairness_stage import ALONE, BEHAVED, FLOODED, FLOODED_FCFS, Plan
from ops.bench.fairness_work import (
    EQUALS,
    FLOOD,
    NEIGHBOUR,
    QUIET,
    SeededWork,
    equal_backlogs,
    read_work,
)
from ops.bench.phase import Phase
from ops.bench.server import Server
from ops.bench.tenant_load import Answer, TenantLoadResult
from ops.bench.tenant_work import TraceScale
from tests.ops.bench.fleet_glances import glance

PLAN = Plan(seed="0", duration_s=10.0, equal_s=60.0, num_slots=32, quiet_slots=4)
SETTINGS = AppArgs()


def parse(*arguments: str) -> Namespace:
    parser = ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    fairness.add_arguments(parser)
    return parser.parse_args(arguments)


def make_phase(ttft_s: float, num_tokens: int = 100, status: int = 200) -> Phase:
    """A quiet tenant that waits ``ttft_s`` for each token beside a neighbour's many."""
    answers = [
        *(Answer(QUIET, float(n), [n + ttft_s], 1, 200) for n in range(4)),
        Answer(NEIGHBOUR, 0.0, [5.0], num_tokens, 200),
        Answer(NEIGHBOUR, 0.0, [], None, status),
    ]
    glances = [glance(0.0, {QUIET: 0.0}), glance(10.0, {QUIET: 1000.0})]
    return Phase(10.0, TenantLoadResult(0.0, 12.0, answers), glances)


def make_equal_phase(*service: float) -> Phase:
    last = dict(zip(EQUALS, service, strict=True))
    glances = [glance(0.0, dict.fromkeys(EQUALS, 0.0)), glance(60.0, last)]
    return Phase(60.0, TenantLoadResult(0.0, 60.0, []), glances)


def make_keys(**changed: list[Phase]) -> dict[str, Any]:
    phases = {
        ALONE: [make_phase(0.1)],
        BEHAVED: [make_phase(0.2), make_phase(0.2)],
        FLOODED: [make_phase(0.2), make_phase(0.22)],
        FLOODED_FCFS: [make_phase(4.0)],
        **changed,
    }
    keys = {
        **compare(phases, {QUIET}),
        **share_out(make_equal_phase(1000, 1000, 1000, 900), SETTINGS),
    }
    return {**keys, "targets": targets(keys)}


def test_the_result_has_the_keys_that_are_promised() -> None:
    """Four phases, the ratios between them, and how even service was."""
    keys = make_keys()
    for name in (ALONE, BEHAVED, FLOODED, FLOODED_FCFS):
        assert keys[name]["quiet_ttft_ms"].keys() == {"p50", "p99"}
        assert keys[name]["throughput_tok_s"] == 10.4
        assert keys[name]["service_per_s"] == 100
    assert keys["isolation_ratio"] == pytest.approx(1.1, abs=0.01)
    assert keys["isolation_ratio_per_repeat"] == [1.0, 1.1]
    assert keys["isolation_ratio_alone"] == pytest.approx(2.2, abs=0.01)
    assert keys["isolation_ratio_fcfs"] == 20
    assert keys["isolation_ratio_settled"] is None  # no request was due that late
    assert keys["throughput_ratio"] == 1.0
    assert keys["jain_index"] == pytest.approx(0.998, abs=0.001)
    assert keys["max_service_gap"] == 100
    assert keys["service_gap_bound"] == round(2 * (512 + 0.3 / 60 * 3900 + 384))
    in_flight_tokens = SETTINGS.replicas * SETTINGS.max_num_seqs * (384 + 32)
    assert keys["service_gap_prior_bound"] == 2 * 2 * in_flight_tokens
    assert keys["rejected"] == 0


def test_targets_are_met_or_named() -> None:
    """The table says which was missed."""
    met = make_keys()
    assert all(met["targets"].values())
    missed = make_keys(**{FLOODED: [make_phase(0.3, num_tokens=10), make_phase(0.3, status=429)]})
    assert missed["targets"] == {
        "isolation_ratio": False,
        "throughput_ratio": False,
        "jain_index": True,
        "max_service_gap": True,
        "rejected": False,
    }
    shown = {}
    for name, keys in (("met", met), ("missed", missed)):
        console = Console(record=True, width=140)
        console.print(table(keys))
        shown[name] = console.export_text()
    assert "every target is met" in shown["met"]
    assert "missed: isolation_ratio, throughput_ratio, rejected" in shown["missed"]


def test_an_equal_tenant_that_wants_no_more_spoils_the_phase() -> None:
    """Then its share says nothing, and no index is told."""
    phase = make_equal_phase(1, 1, 1, 1)
    content = [
        glance(
            phase.glances[-1].at_s * times, dict.fromkeys(EQUALS, 0.0), idle=frozenset({"short"})
        )
        for times in (1.5, 3.0)
    ]
    with pytest.raises(UnevenLoadError, match="short"):
        share_out(Phase(60.0, phase.clients, [*phase.glances, *content]), SETTINGS)


def test_a_flood_is_32_times_what_fills_the_engines() -> None:
    """Behaved, the neighbour leaves the quiet tenant its slots."""
    assert PLAN.num_streams(ALONE) == 0
    assert PLAN.num_streams(BEHAVED) == 28
    assert PLAN.num_streams(FLOODED) == PLAN.num_streams(FLOODED_FCFS) == FLOOD * 28 == 896


def test_every_phase_of_a_repeat_gets_the_same_requests() -> None:
    """Only the next repeat differs; alone, the others stay away."""
    work = SeededWork(quiet_per_s=5.0)
    first, again, second = (work.contention("0", number, 20.0) for number in (0, 0, 1))
    assert first == again
    assert first.arrivals != second.arrivals
    assert {arrival.tenant for arrival in first.arrivals} == {QUIET}
    assert first.alone() == first.arrivals
    assert max(arrival.at_s for arrival in first.arrivals) < 20


def test_equal_tenants_want_more_even_when_they_have_every_slot() -> None:
    """With fewer streams, a tenant would want no more at some moment."""
    backlogs = equal_backlogs("0", num_slots=32)
    assert {backlog.tenant for backlog in backlogs} == EQUALS.keys()
    assert all(backlog.starts_s == [0.0] * 64 for backlog in backlogs)


def write_trace(path: Path, tenants: dict[str, int], seconds: int = 100) -> Path:
    """Each tenant's requests a second apart, of so many tokens."""
    rows = [
        {
            "tenant": tenant,
            "conversation": f"{tenant} {second}",
            "history_tokens": 0,
            "input_tokens": tokens,
            "output_tokens": tokens,
            "arrival_s": float(second),
        }
        for second in range(seconds)
        for tenant, tokens in tenants.items()
    ]
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return path


def test_the_heaviest_tenant_of_a_trace_is_the_neighbour(tmp_path: Path) -> None:
    """Those below an equal share are quiet; one between plays its part and is not looked at."""
    trace = write_trace(tmp_path / "t.jsonl.gz", {"big": 100, "middle": 60, "small": 8, "tiny": 4})
    work = read_work(trace, TraceScale(0.5, 0.5), SETTINGS, max_model_len=512, needed_s=40)
    assert work.neighbour == "big"
    assert work.quiet == {"small", "tiny"}
    contention = work.contention("0", 1, 20.0)
    assert {arrival.tenant for arrival in contention.arrivals} == {"middle", "small", "tiny"}
    assert {arrival.tenant for arrival in contention.alone()} == {"small", "tiny"}
    assert len(contention.arrivals) == 3 * 40
    assert contention.shapes[0].prompt_tokens == 50


@pytest.mark.parametrize(
    ("tenants", "needed_s", "problem"),
    [
        ({"one": 10}, 10, "at least two tenants"),
        ({"one": 10, "": 10}, 10, "at least two tenants"),
        ({"one": 10, "other": 20}, 60, "lasts 50 s at this --time-scale, 60 s are needed"),
        ({"one": 9000, "other": 9000}, 10, "at least two tenants"),
    ],
)
def test_a_trace_that_does_not_hold_what_is_needed_is_refused(
    tmp_path: Path, tenants: dict[str, int], needed_s: float, problem: str
) -> None:
    """In one sentence, before anything is measured."""
    trace = write_trace(tmp_path / "t.jsonl.gz", tenants)
    with pytest.raises(TraceError, match=problem):
        read_work(trace, TraceScale(0.5, 0.5), SETTINGS, max_model_len=512, needed_s=needed_s)


@pytest.mark.parametrize("arguments", [(), ("--trace", "t.jsonl.gz")])
def test_a_model_that_is_too_short_is_refused(arguments: tuple[str, ...]) -> None:
    """Before any request is sent, and whatever the trace holds."""
    server = Server("ours", 8000, "m", 400, cast(psutil.Process, None))
    with pytest.raises(UsageError, match="requests of up to 416 tokens are wanted"):
        make_work(parse(*arguments), SETTINGS, server)


@pytest.mark.parametrize(
    "arguments",
    [("--duration-s", "0"), ("--repeats", "-1"), ("--quiet-rps", "many"), ("--token-scale", "inf")],
)
def test_wrong_arguments_are_wrong_usage(
    arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2 and the argument by its name."""
    with pytest.raises(SystemExit) as caught:
        parse(*arguments)
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err
