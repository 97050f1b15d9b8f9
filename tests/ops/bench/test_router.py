"""`bench router` times a fleet scheduler at work, and the same at a tenth of its size."""

from argparse import ArgumentParser, Namespace

import pytest
from rich.console import Console

from ops.bench import router
from ops.bench.router import summarise, table
from ops.bench.router_times import FleetSize, RouterTimes, RouterTrial, Took
from ops.bench.router_trials import run_trial

CONTRACT_KEYS = {"live_requests", "tenants", "engines", "rerank_ms", "admit_us", "rss_mb"}


def parse(*arguments: str) -> Namespace:
    parser = ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    router.add_arguments(parser)
    return parser.parse_args(arguments)


def test_times_are_told_in_their_units_with_a_tail() -> None:
    """Milliseconds where the whole fleet is looked at, microseconds for one request or report."""
    times = RouterTimes(
        reranks=[Took(0.002, 0.001)] * 98 + [Took(0.005, 0.001)] * 2,
        admissions=[Took(30e-6, 20e-6)] * 98 + [Took(150e-6, 60e-6)] * 2,
        reports=[Took(300e-6, 200e-6)] * 100,
        checkpoints=[Took(0.02, 0.01)],
        snapshots=[Took(0.03, 0.02)],
    )

    keys = summarise(RouterTrial(FleetSize(100, 10, 2), times, rss_mb=12.34, changes=[5]))

    assert keys["rerank_ms"] == {"p50": 2.0, "p99": 5.0}
    assert keys["admit_us"] == {"p50": 30.0, "p99": 150.0}
    assert keys["cpu"]["rerank_ms"] == {"p50": 1.0, "p99": 1.0}
    assert keys["cpu"]["admit_us"] == {"p50": 20.0, "p99": 60.0}
    assert keys["report_us"]["p50"] == 300.0
    assert keys["checkpoint_ms"]["p99"] == 20.0
    assert keys["snapshot_ms"]["p50"] == 30.0
    assert (keys["live_requests"], keys["tenants"], keys["engines"]) == (100, 10, 2)
    assert keys["rss_mb"] == 12.3


def test_a_tenth_is_a_tenth_of_everything_and_never_nothing() -> None:
    """So that a fleet of one engine still has one."""
    assert FleetSize(10_000, 1000, 100).tenth() == FleetSize(1000, 100, 10)
    assert FleetSize(5, 5, 5).tenth() == FleetSize(1, 1, 1)


@pytest.mark.parametrize("policy", ["vtc", "deadline"])
def test_a_trial_times_every_update_and_every_report(policy: str) -> None:
    """In another process; as many requests are live at its end as were at its start."""
    size = FleetSize(live_requests=40, tenants=8, engines=2)
    trial = run_trial(size, policy, rounds=60, seed="0")

    times = trial.times
    assert (len(times.reranks), len(times.reports)) == (60, 2 * 60)
    assert len(times.checkpoints) == len(times.snapshots) == 60 / 5
    assert len(times.admissions) > 10  # who has ended has made way
    assert min(took.cpu_s for took in times.reranks + times.admissions + times.reports) > 0
    assert max(trial.changes) > 0


def test_the_result_has_what_the_contract_names_at_both_sizes() -> None:
    """And the table for people shows both side by side."""
    size = ("--live-requests", "40", "--tenants", "20", "--engines", "10", "--rounds", "2")
    keys = router.run(parse(*size, "--policy", "fair-user")).keys

    assert keys.keys() >= CONTRACT_KEYS | {"growth"}
    assert keys["growth"].keys() >= CONTRACT_KEYS
    assert (keys["live_requests"], keys["growth"]["live_requests"]) == (40, 4)
    console = Console(record=True, width=100)
    console.print(table(keys))
    shown = console.export_text()
    assert "4 requests" in shown
    assert "policy fair-user" in shown
    assert keys["policy"] == "fair-user"


@pytest.mark.parametrize(
    "arguments",
    [("--engines", "0"), ("--tenants", "-1"), ("--rounds", "many"), ("--policy", "luck")],
)
def test_wrong_usage_ends_with_status_2(
    arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any process is started."""
    with pytest.raises(SystemExit) as ended:
        parse(*arguments)
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err
