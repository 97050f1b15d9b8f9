"""A stage puts each phase's load on its server, with a neighbour of the right size."""

from typing import cast

import psutil
import pytest

from ops.bench import fairness_stage
from ops.bench.fairness_stage import ALONE, BEHAVED, FLOODED, Plan, Stage
from ops.bench.fairness_work import NEIGHBOUR, QUIET, SeededWork
from ops.bench.phase import Phase
from ops.bench.progress import Progress
from ops.bench.server import Server
from ops.bench.tenant_load import TenantLoad, TenantLoadResult
from tests.ops.bench.fleet_glances import glance

PLAN = Plan(seed="0", duration_s=10.0, equal_s=60.0, num_slots=32, quiet_slots=4)


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[TenantLoad]:
    played: list[TenantLoad] = []

    def play(load: TenantLoad, _every_s: float) -> Phase:
        played.append(load)
        rest = glance(0.0, {})
        return Phase(load.duration_s, TenantLoadResult(0.0, load.duration_s, []), [rest, rest])

    monkeypatch.setattr(fairness_stage, "play", play)
    return played


@pytest.fixture
def stage() -> Stage:
    server = Server("ours", 8000, "m", 2048, cast(psutil.Process, None))
    return Stage(server, SeededWork(quiet_per_s=5.0), PLAN, Progress())


def test_phases_differ_in_the_neighbour_alone(stage: Stage, loads: list[TenantLoad]) -> None:
    """The same arrivals in each, beside no stream, as many as fit and 32 times as many."""
    for phase in (ALONE, BEHAVED, FLOODED):
        stage.play(phase, 0)
    assert loads[0].arrivals == loads[1].arrivals == loads[2].arrivals
    assert {arrival.tenant for arrival in loads[0].arrivals} == {QUIET}
    streams = [sum(len(each.starts_s) for each in load.backlogs) for load in loads]
    assert streams == [0, 28, 896]
    assert {each.tenant for load in loads for each in load.backlogs} == {NEIGHBOUR}


def test_no_phase_finds_the_kv_of_another(stage: Stage, loads: list[TenantLoad]) -> None:
    """Prompts are drawn from a seed that no other phase or repeat has."""
    for phase, number in ((BEHAVED, 0), (FLOODED, 0), (BEHAVED, 1)):
        stage.play(phase, number)
    assert len({load.seed for load in loads}) == 3
    assert loads[0].arrivals != loads[2].arrivals


def test_equal_tenants_are_played_for_their_own_time(stage: Stage, loads: list[TenantLoad]) -> None:
    """Nobody else beside them."""
    stage.play_equal()
    assert (loads[0].duration_s, loads[0].arrivals) == (60.0, [])
    assert len(loads[0].backlogs) == 4
