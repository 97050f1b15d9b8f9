"""Clocks: engines' moments on our clock, ours on the wall's."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.tracing.clocks import MAX_DRIFT, EngineClock, WallClock

ways_s = st.lists(st.tuples(st.floats(0, 5), st.floats(0, 3)), min_size=1, max_size=20)


def test_our_moments_keep_their_distance_on_the_wall() -> None:
    """Before the origin as after it."""
    wall = WallClock(100.0, 5_000_000_000)
    assert [wall.at(s) for s in (99.5, 100.0, 102.0)] == [4_500_000_000, 5 * 10**9, 7 * 10**9]


@given(ahead_s=st.floats(-1e6, 1e6), messages=ways_s)
def test_an_engines_moment_is_late_by_the_quickest_message_at_most(
    ahead_s: float, messages: list[tuple[float, float]]
) -> None:
    """Never early: nothing seems to have happened before it did. Pauses cost what clocks drift."""
    now_s, clock, sent_s, quickest_s = 0.0, None, 0.0, 5.0
    for way_s, pause_s in messages:
        sent_s = now_s + pause_s
        now_s = sent_s + way_s
        if clock is None:
            clock = EngineClock(sent_s - ahead_s, now_s)
        else:
            clock.hear(sent_s - ahead_s, now_s)
        quickest_s = min(quickest_s, way_s)
    assert clock is not None

    error_s = clock.to_own(sent_s - ahead_s) - sent_s
    assert -1e-6 <= error_s <= quickest_s + MAX_DRIFT * now_s + 1e-6


def test_a_clock_that_drifts_is_followed() -> None:
    """An hour at a tenth of a millisecond per second, which is 0.36 s, leaves less than 1 ms."""
    clock = EngineClock(0.0, 0.0)
    for second in range(1, 3601):
        clock.hear(second * (1 - 1e-4), float(second))
    assert clock.to_own(3600 * (1 - 1e-4)) == pytest.approx(3600.0, abs=1e-3)
