"""`bench schedule` sets our part of a scheduling step beside vLLM's own."""

from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest
from rich.console import Console

from app.demo_model import write_demo_model
from ops.bench import schedule
from ops.bench.schedule import PLAIN, make_trial, share, summarise, table
from ops.bench.scheduling import DISPLACE, IDLE, RERANK, SchedulingTimes

OPTIONS = ["--running", "8", "--waiting", "250", "--steps", "30", "--repeats", "1"]


def parse(*argv: str) -> Namespace:
    parser = ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    schedule.add_arguments(parser)
    return parser.parse_args(argv)


def test_what_vllm_did_not_take_is_ours() -> None:
    """Over all steps of a trial together: one long step counts for as much as it took."""
    times = SchedulingTimes(steps_s=[0.0011, 0.0014], vllm_s=[0.001, 0.001], num_displaced=0)
    assert share(times) == pytest.approx(0.25)


def test_the_result_has_the_keys_that_are_documented() -> None:
    """Each workload's share, both parts' times, and plain vLLM beside our whole step."""
    idle = SchedulingTimes([0.00102] * 4, [0.001] * 4, num_displaced=0)
    busy = SchedulingTimes([0.0012] * 4, [0.001] * 4, num_displaced=4, preempting_s=0.0001)
    busier = SchedulingTimes([0.0013] * 4, [0.001] * 4, num_displaced=8)
    plain = SchedulingTimes([0.00085] * 4, [0.00085] * 4, num_displaced=0)
    results = {IDLE: [idle], DISPLACE: [busy], RERANK: [busy, busier, busier], PLAIN: [plain]}

    keys = summarise(results)

    assert keys["workloads"][IDLE]["share"] == 0.02
    assert keys["workloads"][IDLE]["ours_us"] == {"mean": 20.0, "p50": 20.0, "p99": 20.0}
    assert keys["workloads"][DISPLACE]["displaced_per_step"] == 1
    assert keys["workloads"][DISPLACE]["vllm_preempting_us"] == 25
    assert keys["workloads"][RERANK]["share"] == keys["workloads"][RERANK]["share_max"] == 0.3
    assert keys["workloads"][RERANK]["vllm_us"]["mean"] == 1000
    assert (keys["plain_us"]["mean"], keys["idle_over_plain"]) == (850, 1.2)
    console = Console(record=True, width=100)
    console.print(table({**keys, "running": 8, "waiting": 2000}))
    assert "2.0%" in console.export_text()


def test_plain_vllm_gets_the_requests_of_the_idle_workload() -> None:
    """The same seed gives the same prompts, so the two can be compared."""
    idle, plain = (make_trial(name, "7", parse(*OPTIONS)) for name in (IDLE, PLAIN))
    assert (idle.workload, idle.seed, idle.num_waiting) == (plain.workload, plain.seed, 250)
    assert (idle.is_plain, plain.is_plain) == (False, True)


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_each_workload_displaces_as_it_says(tmp_path: Path) -> None:
    """On a real scheduler: nobody, one in every step, and some of those that were ranked anew."""
    write_demo_model(tmp_path / "tiny", "tiny")
    keys = schedule.run(parse("--model", str(tmp_path / "tiny"), *OPTIONS)).keys

    displaced = {name: one["displaced_per_step"] for name, one in keys["workloads"].items()}
    assert (displaced[IDLE], displaced[DISPLACE]) == (0, 1)
    assert displaced[RERANK] > 0
    assert all(one["share"] > 0 for one in keys["workloads"].values())
    assert keys["plain_us"]["mean"] > 0
