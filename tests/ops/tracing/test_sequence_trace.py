"""The spans of one sequence: phases of its gateway, states of its engine, sums over it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.trace import StatusCode

from ops.tracing import names
from ops.tracing.clocks import WallClock
from ops.tracing.names import EngineState, Phase, PlacingNote
from ops.tracing.sequence_trace import SequenceTrace
from tests.ops.tracing.recorded import Recorded, is_child, lasted_s

QUEUED, RUNNING, OUT = EngineState.QUEUED, EngineState.RUNNING, EngineState.SWITCHED_OUT


def begin(recorded: Recorded) -> SequenceTrace:
    """At second 0; at second 1 it looks for its place."""
    trace = SequenceTrace(recorded.tracer, WallClock(0.0, 10**18), 0.0, {names.TENANT: "acme"})
    trace.look_for_place(1.0)
    return trace


def lasted(recorded: Recorded) -> dict[str, list[float]]:
    """Seconds of all spans, by name."""
    seconds: dict[str, list[float]] = {}
    for span in recorded.spans:
        seconds.setdefault(span.name, []).append(round(lasted_s(span), 6))
    return seconds


def test_a_sequence_passes_its_phases() -> None:
    """From the request's beginning to the last token, each a child of the span over all of it."""
    recorded = Recorded()
    trace = begin(recorded)
    trace.note_placing(PlacingNote.IN_LINE, 1.5)
    trace.note_placing(PlacingNote.IN_LINE, 2.5)
    trace.take_place("engine-a", -4, 3.0)
    trace.note_tokens(7.0)
    trace.note_tokens(8.0)
    trace.finish("stop", 3, 15.0)

    assert lasted(recorded) == {
        names.GENERATE: [15.0],
        Phase.PREPARE: [1.0],
        Phase.PLACE: [2.0],
        Phase.WAIT: [4.0],
        Phase.DECODE: [8.0],
    }
    whole = recorded.one(names.GENERATE)
    assert all(is_child(span, whole) for span in recorded.spans if span is not whole)
    [note] = recorded.one(Phase.PLACE).events
    assert note.name == "in line: no engine has room for it"
    assert dict(recorded.one(Phase.WAIT).attributes or {}) == {
        names.ENGINE: "engine-a",
        names.PRIORITY: -4,
    }
    assert dict(whole.attributes or {}) == {
        names.TENANT: "acme",
        names.ENGINE: "engine-a",
        names.PRIORITY: -4,
        names.OUTPUT_TOKENS: 3,
        names.FINISH_REASONS: ("stop",),
        names.NUM_SWITCHES: 0,
        names.SWITCHED_OUT_S: 0.0,
    }
    assert whole.status.status_code is StatusCode.UNSET


def test_a_switched_out_sequence_says_how_often_and_how_long() -> None:
    """A span per stay, and the sums; the engine's word comes later than what it is about."""
    recorded = Recorded()
    trace = begin(recorded)
    trace.take_place("engine-a", 0, 2.0)
    for state, at_s in [(QUEUED, 2.5), (RUNNING, 3.0), (OUT, 4.0), (RUNNING, 6.0)]:
        trace.enter_state(state, at_s, 6.5)
    for state, at_s in [(OUT, 7.0), (RUNNING, 7.5)]:
        trace.enter_state(state, at_s, 8.0)
    trace.finish("length", 1, 10.0)

    seconds = lasted(recorded)
    assert seconds[QUEUED] == [0.5]
    assert seconds[RUNNING] == [1.0, 1.0, 2.5]
    assert seconds[OUT] == [2.0, 0.5]
    attributes = recorded.one(names.GENERATE).attributes or {}
    assert (attributes[names.NUM_SWITCHES], attributes[names.SWITCHED_OUT_S]) == (2, 2.5)


def test_a_sequence_that_ends_switched_out_was_so_to_its_end() -> None:
    """What its engine said last holds."""
    recorded = Recorded()
    trace = begin(recorded)
    trace.take_place("engine-a", 0, 2.0)
    for state, at_s in [(RUNNING, 3.0), (OUT, 4.0)]:
        trace.enter_state(state, at_s, 4.0)
    trace.finish("abort", 1, 9.0)

    assert lasted(recorded)[OUT] == [5.0]
    assert (recorded.one(names.GENERATE).attributes or {})[names.SWITCHED_OUT_S] == 5.0


def test_a_lost_engine_is_told_and_the_next_one_begins_anew() -> None:
    """Each engine has states of its own; in between the sequence looks for a place."""
    recorded = Recorded()
    trace = begin(recorded)
    trace.take_place("engine-a", 0, 2.0)
    trace.enter_state(RUNNING, 2.5, 3.0)
    trace.note_tokens(3.0)
    trace.lose_engine(4.0)
    trace.take_place("engine-b", 0, 6.0)
    trace.enter_state(RUNNING, 7.0, 8.0)
    trace.note_tokens(8.0)
    trace.finish("stop", 1, 9.0)

    seconds = lasted(recorded)
    assert seconds[Phase.PLACE] == [1.0, 2.0]
    assert seconds[Phase.WAIT] == [1.0, 2.0]
    assert seconds[Phase.DECODE] == [1.0, 1.0]
    assert seconds[RUNNING] == [1.5, 2.0]
    whole = recorded.one(names.GENERATE)
    [lost] = whole.events
    assert (lost.name, dict(lost.attributes or {})) == ("engine lost", {names.ENGINE: "engine-a"})
    assert (whole.attributes or {})[names.ENGINE] == "engine-b"


@pytest.mark.parametrize(
    ("outcome", "status"),
    [("error", StatusCode.ERROR), ("abort", StatusCode.UNSET), ("rejected", StatusCode.UNSET)],
)
def test_only_what_failed_is_an_error(outcome: str, status: StatusCode) -> None:
    """A client that leaves, or a tenant past its limit, is none."""
    recorded = Recorded()
    begin(recorded).finish(outcome, 1, 2.0)

    whole = recorded.one(names.GENERATE)
    assert whole.status.status_code is status
    assert (whole.attributes or {})[names.FINISH_REASONS] == (outcome,)


@given(
    events=st.lists(
        st.tuples(st.sampled_from(list(EngineState)), st.floats(-100, 100), st.floats(0, 10)),
        max_size=12,
    )
)
def test_an_engines_states_lie_between_its_place_and_the_end(
    events: list[tuple[EngineState, float, float]],
) -> None:
    """Whatever its clock says; and the switched-out seconds are those of the spans."""
    recorded = Recorded()
    trace = begin(recorded)
    trace.take_place("engine-a", 0, 2.0)
    now_s = 2.0
    for state, at_s, pause_s in events:
        now_s += pause_s
        trace.enter_state(state, at_s, now_s)
    trace.finish("stop", 1, now_s)

    placed_ns, end_ns = 10**18 + 2 * 10**9, recorded.one(names.GENERATE).end_time
    states = [span for span in recorded.spans if span.name in list(EngineState)]
    assert len(states) == len(events)
    for span in states:
        assert placed_ns <= (span.start_time or 0) <= (span.end_time or 0) <= (end_ns or 0)
    attributes = recorded.one(names.GENERATE).attributes or {}
    assert attributes[names.NUM_SWITCHES] == len(recorded.named(OUT))
    out_s = sum(lasted_s(span) for span in recorded.named(OUT))
    assert attributes[names.SWITCHED_OUT_S] == pytest.approx(out_s, abs=1e-5)
