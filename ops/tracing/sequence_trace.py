"""The spans of one sequence: where it was, from the HTTP request to its last token.

Owns what is told of a sequence and in which spans: one over all of it, in that one lane of phases
seen by the gateway and one of what its engine says it did. Leaves to its caller when things happen
and what an engine calls them. vLLM's own tracing has one span per request, made at its end from
sums in which a request that was switched out counts as running; only the engine's events, on
which those sums are built, are used here.
"""

from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Status, StatusCode, Tracer

from ops.tracing import names
from ops.tracing.clocks import WallClock
from ops.tracing.lane import Lane
from ops.tracing.names import EngineState, Phase, PlacingNote


def traced_since_ns() -> int | None:
    """When the HTTP request in whose context this runs began; None where it is not traced."""
    span = trace.get_current_span()
    return span.start_time if isinstance(span, ReadableSpan) and span.is_recording() else None


class SequenceTrace:
    """One sequence. ``finish`` is called once and is the last; times are of our monotonic clock.

    The phases follow each other from the first moment to the last. The engine's states begin no
    earlier than the engine had the sequence, and end no later than the sequence.
    """

    def __init__(
        self,
        tracer: Tracer,
        wall: WallClock,
        begin_s: float,
        attributes: Mapping[str, str | int | float],
    ) -> None:
        self._wall = wall
        self._span = tracer.start_span(
            names.GENERATE, attributes=attributes, start_time=wall.at(begin_s)
        )
        inside = trace.set_span_in_context(self._span)
        self._phases = Lane(tracer, inside, wall, begin_s)
        self._states = Lane(tracer, inside, wall, begin_s)
        self._phases.enter(Phase.PREPARE, begin_s)
        self._last_note: PlacingNote | None = None
        self.engine_id: str | None = None  # that has it
        self._state_s = begin_s  # since when its engine's state is what it is
        self._has_tokens = False
        self._num_switches = 0
        self._switched_out_s = 0.0
        self._left_s: float | None = None  # since when it has been switched out

    def look_for_place(self, now_s: float) -> None:
        self._last_note = None
        self._phases.enter(Phase.PLACE, now_s)

    def note_placing(self, note: PlacingNote, now_s: float) -> None:
        """What has not changed is not said again: who is in line asks now and then."""
        if note is not self._last_note:
            self._last_note = note
            self._phases.note(note, now_s)

    def take_place(self, engine_id: str, priority: int, now_s: float) -> None:
        """It is on its way to its engine."""
        self.engine_id = engine_id
        self._state_s = now_s
        self._has_tokens = False
        place: dict[str, str | int] = {names.ENGINE: engine_id, names.PRIORITY: priority}
        self._span.set_attributes(place)
        self._phases.enter(Phase.WAIT, now_s, place)

    def enter_state(self, state: EngineState, at_s: float, now_s: float) -> None:
        """Its engine did this ``at_s``, of which we hear now."""
        assert self.engine_id is not None
        at_s = self._state_s = min(max(at_s, self._state_s), now_s)
        self._come_back(at_s)
        if state is EngineState.SWITCHED_OUT:
            self._num_switches += 1
            self._left_s = at_s
        self._states.enter(state, at_s, {names.ENGINE: self.engine_id})

    def note_tokens(self, now_s: float) -> None:
        """Its engine has put out tokens."""
        if not self._has_tokens:
            self._has_tokens = True
            self._phases.enter(Phase.DECODE, now_s)

    def lose_engine(self, now_s: float) -> None:
        """Its engine is gone, and it looks for another."""
        self._leave_engine(now_s)
        lost = {names.ENGINE: self.engine_id} if self.engine_id else None
        self._span.add_event(names.ENGINE_LOST, lost, self._wall.at(now_s))
        self.engine_id = None
        self.look_for_place(now_s)

    def finish(self, outcome: str, num_tokens: int, now_s: float) -> None:
        """With an answer of so many tokens; the outcome is vLLM's finish reason, or rejected."""
        self._leave_engine(now_s)
        self._phases.close(now_s)
        self._span.set_attributes(
            {
                names.FINISH_REASONS: [outcome],
                names.OUTPUT_TOKENS: num_tokens,
                names.NUM_SWITCHES: self._num_switches,
                names.SWITCHED_OUT_S: self._switched_out_s,
            }
        )
        if outcome == "error":
            self._span.set_attribute(names.ERROR_TYPE, outcome)
            self._span.set_status(Status(StatusCode.ERROR))
        self._span.end(self._wall.at(now_s))

    def _leave_engine(self, at_s: float) -> None:
        self._come_back(at_s)
        self._states.close(at_s)

    def _come_back(self, at_s: float) -> None:
        if self._left_s is not None:
            self._switched_out_s += at_s - self._left_s
            self._left_s = None
