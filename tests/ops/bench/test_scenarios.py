"""`bench scenarios` judges each scenario by limits that were written down before it ran."""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import psutil
import pytest
from rich.console import Console

from app.settings import AppArgs
from ops.bench import scenario_parts, scenarios
from ops.bench.fairness_work import EQUALS
from ops.bench.phase import Phase
from ops.bench.scenario_parts import ScenarioStage
from ops.bench.scenarios import NAMES, ON_ONE_SERVER, server_settings, table
from ops.bench.server import Server
from ops.bench.tenant_load import Answer, TenantLoad, TenantLoadResult
from ops.bench.verdict import Bound, Verdict
from tests.ops.bench.fleet_glances import glance

DURATION_S = 30.0


def parse(*arguments: str) -> Namespace:
    parser = ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    scenarios.add_arguments(parser)
    return parser.parse_args(arguments)


@dataclass
class StandInPlay:
    """Answers every tenant of a load after ``waits_s``, by default a second, and notes the load."""

    waits_s: Mapping[str, float] = field(default_factory=dict)
    service: Mapping[str, float] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    loads: list[TenantLoad] = field(default_factory=list)

    def __call__(self, load: TenantLoad, _every_s: float) -> Phase:
        self.loads.append(load)
        tenants = sorted(
            {arrival.tenant for arrival in load.arrivals} | {each.tenant for each in load.backlogs}
        )
        answers = [
            Answer(tenant, 1.0, [1.0 + self.waits_s.get(tenant, 1.0)], 100, 200)
            for tenant in tenants
        ]
        last = {tenant: self.service.get(tenant, 1000.0) for tenant in tenants}
        glances = [
            glance(0.0, dict.fromkeys(tenants, 0.0), weights=self.weights),
            glance(DURATION_S, last, weights=self.weights),
        ]
        return Phase(DURATION_S, TenantLoadResult(0.0, DURATION_S, answers), glances)


@pytest.fixture
def stage() -> ScenarioStage:
    server = Server("ours", 8000, "m", 2048, cast(psutil.Process, None))
    return ScenarioStage(server, AppArgs(max_num_seqs=4), "0", DURATION_S, max_wait_s=8.0)


@pytest.fixture
def playing(monkeypatch: pytest.MonkeyPatch) -> StandInPlay:
    played = StandInPlay()
    monkeypatch.setattr(scenario_parts, "play", played)
    return played


def bounds_of(verdict: Verdict) -> dict[str, bool]:
    return {bound.name: bound.holds for bound in verdict.bounds}


def test_a_bound_holds_up_to_its_limit() -> None:
    """On the right side, the limit itself included."""
    assert Bound("x", 1.5, at_most=1.5).holds
    assert not Bound("x", 1.51, at_most=1.5).holds
    assert Bound("x", 0.98, at_least=0.98).holds
    assert not Bound("x", 0.97, at_least=0.98).holds
    assert Bound("x", 0.97, at_least=0.98).described() == {
        "value": 0.97,
        "at_least": 0.98,
        "holds": False,
    }


def test_a_scenario_passes_with_all_its_bounds() -> None:
    """One missed is enough to fail."""
    good, bad = Bound("good", 1, at_most=1), Bound("bad", 2, at_most=1)
    assert Verdict((good, good), {}).has_passed
    assert not Verdict((good, bad), {}).has_passed
    assert Verdict((good, bad), {"n": 7}).described()["n"] == 7


def test_saturated_tenants_wait_alike(stage: ScenarioStage, playing: StandInPlay) -> None:
    """The worst P99 against the best."""
    assert scenario_parts.saturation(stage).has_passed
    playing.waits_s = {"tenant-2": 1.6}
    assert bounds_of(scenario_parts.saturation(stage)) == {
        "worst_over_best_p99": False,
        "rejected": True,
    }
    assert [len(backlog.starts_s) for backlog in playing.loads[0].backlogs] == [4] * 4


def test_overhead_is_throughput_lost_to_the_policy(
    stage: ScenarioStage, playing: StandInPlay
) -> None:
    """On a quarter of the slots; a repeat has no prompt of another."""
    phases = [scenario_parts.light_load(stage, number, DURATION_S) for number in range(2)]
    assert scenario_parts.overhead(phases, phases).has_passed
    slower = [Phase(1.1 * DURATION_S, phase.clients, phase.glances) for phase in phases]
    assert bounds_of(scenario_parts.overhead(slower, phases)) == {
        "throughput_ratio": False,
        "rejected": True,
    }
    assert sum(len(backlog.starts_s) for backlog in playing.loads[0].backlogs) == 2
    assert len({load.seed for load in playing.loads}) == 2


def test_equal_tenants_get_equal_service(stage: ScenarioStage, playing: StandInPlay) -> None:
    """Eight of them, two of each kind of request."""
    assert scenario_parts.equal(stage).has_passed
    playing.service = {"short-1": 300.0}
    assert not bounds_of(scenario_parts.equal(stage))["jain_index"]
    assert len(playing.loads[0].backlogs) == 2 * len(EQUALS)


def test_batch_work_waits_no_longer_than_its_bound(
    stage: ScenarioStage, playing: StandInPlay
) -> None:
    """The longest wait counts, not a percentile; only the batch tenant says that it is batch."""
    playing.waits_s = {"below": 9.0}
    assert scenario_parts.classes(stage).has_passed
    playing.waits_s = {"below": 9.1}
    assert bounds_of(scenario_parts.classes(stage)) == {
        "batch_wait_s_max": False,
        "rejected": True,
    }
    assert playing.loads[0].headers == {"below": {"X-Service-Class": "batch"}}


def test_nobody_is_cut_off_before_the_longest_wait_has_passed(
    stage: ScenarioStage, playing: StandInPlay
) -> None:
    """It would seem to have been kept."""
    scenario_parts.classes(replace(stage, max_wait_s=60.0))
    assert playing.loads[0].patience_s > 60


def test_mixed_shares_are_by_weight_and_the_quiet_one_is_not_held_up(
    stage: ScenarioStage, playing: StandInPlay
) -> None:
    """Twice the weight, twice the service; a quarter of the busy ones' wait at most."""
    playing.weights = {"heavy": 2.0}
    playing.service = {"heavy": 2000.0, "light": 1000.0}
    playing.waits_s = {"quiet": 0.2}
    assert scenario_parts.mixed(stage).has_passed
    playing.service, playing.waits_s = {"heavy": 1000.0, "light": 1000.0}, {"quiet": 0.3}
    assert bounds_of(scenario_parts.mixed(stage)) == {
        "jain_index": False,
        "quiet_p99_over_busy_p50": False,
        "rejected": True,
    }


def test_the_table_shows_every_bound() -> None:
    """With its value, its limit and whether it holds."""
    verdicts = {
        "equal": Verdict((Bound("jain_index", 0.999, at_least=0.99),), {}),
        "classes": Verdict((Bound("batch_wait_s_max", 12.0, at_most=9.0),), {}),
    }
    keys: dict[str, Any] = {
        "scenarios": {name: verdict.described() for name, verdict in verdicts.items()},
        "passed": False,
    }
    console = Console(record=True, width=120)
    console.print(table(keys))
    shown = console.export_text()
    assert "at least 0.99" in shown
    assert "MISSED" in shown
    assert "not all passed" in shown


def test_scenarios_are_chosen_by_name() -> None:
    """All of them unless some are asked for."""
    assert parse().only == NAMES
    assert parse("--only", "classes,equal").only == ("classes", "equal")
    assert {*ON_ONE_SERVER} == {*NAMES} - {"overhead"}


def test_the_server_runs_with_what_is_asked_for() -> None:
    """Policy, longest wait and the weight that `mixed` needs."""
    settings = server_settings(parse("--max-wait-s", "5", "--max-num-seqs", "4"), "fcfs")
    assert (settings.fairness.policy, settings.max_num_seqs) == ("fcfs", 4)
    assert settings.model_dump()["fairness"]["max_wait_s"] == 5
    assert settings.tenants["heavy"].weight == 2


@pytest.mark.parametrize(
    "arguments",
    [
        ("--only", "everything"),
        ("--max-wait-s", "-1"),
        ("--replicas", "0"),
        ("--only", "equal,equal"),
    ],
)
def test_wrong_arguments_are_wrong_usage(
    arguments: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2 and the argument by its name."""
    with pytest.raises(SystemExit) as caught:
        parse(*arguments)
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err
