"""How many engines there should be: more where work waits, fewer where it would not."""

from dataclasses import replace

import msgspec
from hypothesis import assume, given
from hypothesis import strategies as st

from scheduler.pressure import FleetPressure
from scheduler.scaling import CALM, ScalingGoal, wanted_engines

GOAL = ScalingGoal(target_delay_s=2.0, target_switches_per_s=50.0, min_engines=1, max_engines=1000)
IDLE = FleetPressure()

engines = st.integers(1, 200)
rates = st.floats(0, 1e6)
pressures = st.builds(FleetPressure, rates, rates, st.floats(0, 100))
goals = st.builds(
    lambda least, more, delay_s, switches: ScalingGoal(delay_s, switches, least, least + more),
    st.integers(1, 50),
    st.integers(0, 50),
    st.floats(0.01, 100),
    st.floats(0.01, 1000),
)


def change(pressure: FleetPressure, **changes: float) -> FleetPressure:
    return msgspec.structs.replace(pressure, **changes)


def test_requests_that_wait_too_long_want_more_engines() -> None:
    """In proportion to how much too long, up to twice as many."""
    assert wanted_engines(4, FleetPressure(delay_s=2.0, busy_share=1.0), GOAL) == 4
    assert wanted_engines(4, FleetPressure(delay_s=2.1, busy_share=1.0), GOAL) == 5
    assert wanted_engines(4, FleetPressure(delay_s=3.0, busy_share=1.0), GOAL) == 6
    assert wanted_engines(4, FleetPressure(delay_s=500.0, busy_share=1.0), GOAL) == 8


def test_too_many_switches_want_more_engines_though_nobody_waits() -> None:
    """A fleet that runs everybody by turns has too much to do as well."""
    assert wanted_engines(2, FleetPressure(switches_per_s=60.0, busy_share=1.0), GOAL) == 3


def test_an_idle_fleet_shrinks_an_engine_at_a_time_to_the_least() -> None:
    """And stays there."""
    numbers = [5]
    for _ in range(6):
        numbers.append(wanted_engines(numbers[-1], IDLE, replace(GOAL, min_engines=2)))
    assert numbers == [5, 4, 3, 2, 2, 2, 2]


def test_engines_that_are_needed_stay() -> None:
    """Where nobody waits, since there are seats, and one engine less would not have them."""
    assert wanted_engines(4, FleetPressure(busy_share=0.6), GOAL) == 4
    assert wanted_engines(4, FleetPressure(busy_share=0.5), GOAL) == 3


@given(engines, pressures, goals)
def test_the_number_is_always_within_its_bounds(
    num_engines: int, pressure: FleetPressure, goal: ScalingGoal
) -> None:
    """Also where the fleet is not, since they were changed."""
    assert goal.min_engines <= wanted_engines(num_engines, pressure, goal) <= goal.max_engines


@given(engines, pressures, goals, rates)
def test_more_waiting_or_switching_never_wants_fewer_engines(
    num_engines: int, pressure: FleetPressure, goal: ScalingGoal, more: float
) -> None:
    """The decision follows both, everything else being equal."""
    wanted = wanted_engines(num_engines, pressure, goal)

    longer = change(pressure, delay_s=pressure.delay_s + more)
    oftener = change(pressure, switches_per_s=pressure.switches_per_s + more)
    assert wanted_engines(num_engines, longer, goal) >= wanted
    assert wanted_engines(num_engines, oftener, goal) >= wanted


@given(engines, pressures, goals, st.floats(0, 100))
def test_more_work_never_wants_fewer_engines(
    num_engines: int, pressure: FleetPressure, goal: ScalingGoal, more: float
) -> None:
    """Seats that are taken keep their engines."""
    busier = change(pressure, busy_share=pressure.busy_share + more)

    assert wanted_engines(num_engines, busier, goal) >= wanted_engines(num_engines, pressure, goal)


@given(engines, st.floats(CALM, 1.0), st.floats(0, 100))
def test_between_calm_and_strained_nothing_changes(
    num_engines: int, strain: float, busy_share: float
) -> None:
    """However few seats are taken."""
    pressure = FleetPressure(strain * GOAL.target_delay_s, 0.0, busy_share)

    assert wanted_engines(num_engines, pressure, GOAL) == num_engines


@given(st.integers(2, 200), st.floats(0, CALM, exclude_max=True), st.floats(0, 1))
def test_an_engine_that_goes_is_not_missed(
    num_engines: int, strain: float, busy_share: float
) -> None:
    """Those that stay can seat what is there, so that what follows does not bring it back."""
    pressure = FleetPressure(strain * GOAL.target_delay_s, 0.0, busy_share)
    fewer = wanted_engines(num_engines, pressure, GOAL)
    assume(fewer < num_engines)

    after = change(pressure, busy_share=busy_share * num_engines / fewer)
    assert after.busy_share < 1
    assert wanted_engines(fewer, after, GOAL) <= fewer
