"""FleetTraces: a gateway's requests as spans, with what their engines say of them.

Owns which requests are traced (those whose HTTP request is) and reads vLLM's facts for them: the
sender's parameters, the tokens, and the events that vLLM's scheduler records of a request while its
``log_stats`` is on. What is told in which span is ``ops.tracing``'s. One of the adapters.
"""

import time
from collections.abc import Callable, Collection

from opentelemetry.trace import Tracer
from vllm.v1.engine import (
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
)

from deployments.vllm_watch import RequestWatch
from ops.tracing import names
from ops.tracing.clocks import EngineClock, WallClock
from ops.tracing.names import EngineState, PlacingNote
from ops.tracing.sequence_trace import SequenceTrace, traced_since_ns
from scheduler.admission import AdmitRequest

STATES = {
    EngineCoreEventType.QUEUED: EngineState.QUEUED,
    EngineCoreEventType.SCHEDULED: EngineState.RUNNING,
    EngineCoreEventType.PREEMPTED: EngineState.SWITCHED_OUT,
}


class FleetTraces(RequestWatch):
    """Traces by request. Each is finished once, with its request."""

    def __init__(
        self,
        tracer: Tracer,
        model: str,
        clock: Callable[[], float] = time.monotonic,
        wall_clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._tracer = tracer
        self._model = model
        self._now_s = clock
        self._wall_ns = wall_clock_ns
        self._traces: dict[str, SequenceTrace] = {}
        self._engine_clocks: dict[str, EngineClock] = {}

    def started(self, request: EngineCoreRequest, admit: AdmitRequest) -> None:
        begin_ns = traced_since_ns()
        if begin_ns is None:
            return
        now_s, now_ns = self._now_s(), self._wall_ns()
        begin_s = now_s - max(now_ns - begin_ns, 0) / 1e9
        trace = SequenceTrace(
            self._tracer, WallClock(now_s, now_ns), begin_s, self._attributes(request, admit)
        )
        trace.look_for_place(now_s)
        self._traces[request.request_id] = trace

    def placing(self, request_id: str, note: PlacingNote) -> None:
        trace = self._traces.get(request_id)
        if trace is not None:
            trace.note_placing(note, self._now_s())

    def placed(self, request_id: str, engine_id: str, priority: int) -> None:
        trace = self._traces.get(request_id)
        if trace is not None:
            trace.take_place(engine_id, priority, self._now_s())

    def heard(self, engine_id: str, outputs: EngineCoreOutputs, now_s: float) -> None:
        clock = self._engine_clocks.get(engine_id)
        if clock is None:
            clock = self._engine_clocks[engine_id] = EngineClock(outputs.timestamp, now_s)
        else:
            clock.hear(outputs.timestamp, now_s)
        for output in outputs.outputs:
            trace = self._traces.get(output.request_id)
            if trace is not None and trace.engine_id == engine_id:
                _tell(trace, output, clock, now_s)

    def lost(self, engine_id: str, request_ids: Collection[str]) -> None:
        self._engine_clocks.pop(engine_id, None)
        for request_id in request_ids:
            trace = self._traces.get(request_id)
            if trace is not None:
                trace.lose_engine(self._now_s())

    def finished(self, request_id: str, outcome: str, num_tokens: int) -> None:
        trace = self._traces.pop(request_id, None)
        if trace is not None:
            trace.finish(outcome, num_tokens, self._now_s())

    def _attributes(
        self, request: EngineCoreRequest, admit: AdmitRequest
    ) -> dict[str, str | int | float]:
        attributes: dict[str, str | int | float] = {
            names.REQUEST: request.request_id,
            names.TENANT: admit.tenant,
            names.MODEL: self._model,
            names.INPUT_TOKENS: admit.prompt_tokens,
        }
        if admit.conversation is not None:
            attributes[names.CONVERSATION] = admit.conversation
        if (params := request.sampling_params) is not None:
            attributes[names.TEMPERATURE] = params.temperature
            attributes[names.TOP_P] = params.top_p
            attributes[names.MAX_TOKENS] = admit.max_output_tokens
        return attributes


def _tell(trace: SequenceTrace, output: EngineCoreOutput, clock: EngineClock, now_s: float) -> None:
    for event in output.events or ():
        trace.enter_state(STATES[event.type], clock.to_own(event.timestamp), now_s)
    if output.new_token_ids:
        trace.note_tokens(now_s)
