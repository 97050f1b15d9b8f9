"""The fleet's pressure: means of what waits, rates of what switches, seats that are taken."""

from msgspec.structs import replace

from scheduler.admission import EngineCapacity
from scheduler.engines import JoinedEngine
from scheduler.pressure import FleetPressure, PressureGauge
from scheduler.reports import SwitchCounts

SEATS = 8


def engine(preemptions: int = 0, *, is_draining: bool = False) -> JoinedEngine:
    joined = JoinedEngine(EngineCapacity(SEATS, blocks_total=100, block_tokens=16))
    joined.latest = replace(joined.latest, switches=SwitchCounts(preemptions=preemptions))
    joined.is_draining = is_draining
    return joined


def test_an_idle_fleet_is_under_no_pressure() -> None:
    """With engines and without."""
    gauge = PressureGauge()

    assert gauge.take([], 0, {"a": engine()}, now_s=1.0) == FleetPressure()
    assert gauge.take([], 0, {}, now_s=2.0) == FleetPressure()


def test_the_delay_is_the_mean_of_those_who_wait() -> None:
    """Who runs has no part in it."""
    pressure = PressureGauge().take([1.0, 3.0], 10, {"a": engine(), "b": engine()}, now_s=1.0)

    assert (pressure.delay_s, pressure.busy_share) == (2.0, 10 / (2 * SEATS))


def test_seats_of_an_engine_that_drains_are_not_there_any_more() -> None:
    """What it still has will want other seats. Without any, what is there has none."""
    draining = engine(is_draining=True)
    gauge = PressureGauge()

    assert gauge.take([], 8, {"a": engine(), "b": draining}, now_s=1.0).busy_share == 1.0
    assert gauge.take([], 8, {"b": draining}, now_s=2.0).busy_share == 1.0


def test_switches_are_counted_per_second_and_engine() -> None:
    """Since the last time. What an engine had counted before it was known is nobody's."""
    gauge = PressureGauge()
    assert gauge.take([], 0, {"a": engine(100)}, now_s=10.0).switches_per_s == 0.0

    engines = {"a": engine(130), "b": engine(500)}
    assert gauge.take([], 0, engines, now_s=12.0).switches_per_s == 30 / 2 / 2

    engines = {"a": engine(3), "b": engine(520)}  # the first began anew
    assert gauge.take([], 0, engines, now_s=13.0).switches_per_s == 20 / 2


def test_asked_twice_at_a_time_it_makes_up_no_rate() -> None:
    """Nothing can be said of no time at all."""
    gauge = PressureGauge()
    gauge.take([], 0, {"a": engine(1)}, now_s=1.0)

    assert gauge.take([], 0, {"a": engine(9)}, now_s=1.0).switches_per_s == 0.0
