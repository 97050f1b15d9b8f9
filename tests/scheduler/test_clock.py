"""Time that goes on whatever the machine's clock does."""

from scheduler.clock import SteadyClock


def test_time_runs_on_after_a_step_back() -> None:
    """A step back of an hour is no time at all, and the seconds after it count as ever."""
    readings = iter([1000.0, 1005.0, 1005.0 - 3600.0, 1006.0 - 3600.0])
    clock = SteadyClock(lambda: next(readings))

    assert [clock(), clock(), clock()] == [5.0, 5.0, 6.0]
