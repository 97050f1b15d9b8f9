"""A lane: spans one after another."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.context import Context

from ops.tracing.clocks import WallClock
from ops.tracing.lane import Lane
from tests.ops.tracing.recorded import Recorded

WALL = WallClock(0.0, 10**18)


@given(times_s=st.lists(st.floats(0, 1e6), min_size=1, max_size=20), end_s=st.floats(0, 1e6))
def test_spans_meet_whatever_times_are_told(times_s: list[float], end_s: float) -> None:
    """No gap, no overlap, none that ends before it begins; the last ends with the lane."""
    recorded = Recorded()
    lane = Lane(recorded.tracer, Context(), WALL, begin_s=1.0)
    for index, at_s in enumerate(times_s):
        lane.enter(f"span {index}", at_s)
    lane.close(end_s)

    spans = {span.name: span for span in recorded.spans}
    ordered = [spans[f"span {index}"] for index in range(len(times_s))]
    assert ordered[0].start_time == WALL.at(max(1.0, times_s[0]))
    assert all(one.end_time == next_one.start_time for one, next_one in pairwise(ordered))
    assert all((span.end_time or 0) >= (span.start_time or 0) for span in ordered)
    assert ordered[-1].end_time == WALL.at(max(1.0, *times_s, end_s))


def test_what_happens_in_no_span_is_not_kept() -> None:
    """Notes belong to the span that is open."""
    recorded = Recorded()
    lane = Lane(recorded.tracer, Context(), WALL, begin_s=0.0)
    lane.note("too early", 0.0)
    lane.enter("span", 1.0)
    lane.note("in time", 2.0)
    lane.close(3.0)
    lane.note("too late", 4.0)
    lane.close(5.0)

    [event] = recorded.one("span").events
    assert (event.name, event.timestamp) == ("in time", WALL.at(2.0))
