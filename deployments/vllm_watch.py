"""RequestWatch: who is told what becomes of a gateway's requests.

Owns the moments there are to tell of; the client of the fleet tells, once per request and moment
and once per message of an engine, never per token. What is made of it is for who listens: this one
takes no notice, ``vllm_traces`` makes spans.
"""

from collections.abc import Collection

from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest

from ops.tracing.names import PlacingNote
from scheduler.admission import AdmitRequest


class RequestWatch:
    """Takes no notice. Every request that was started is finished."""

    def started(self, request: EngineCoreRequest, admit: AdmitRequest) -> None:
        """A request has come in and looks for its place."""

    def placing(self, request_id: str, note: PlacingNote) -> None:
        """What there is to say of its looking for a place."""

    def placed(self, request_id: str, engine_id: str, priority: int) -> None:
        """It is on its way to this engine."""

    def heard(self, engine_id: str, outputs: EngineCoreOutputs, now_s: float) -> None:
        """An engine's step, before the requests that it ends are finished."""

    def lost(self, engine_id: str, request_ids: Collection[str]) -> None:
        """The engine is gone; these requests look for another, or are finished next."""

    def finished(self, request_id: str, outcome: str, num_tokens: int) -> None:
        """With an answer of so many tokens; the outcome is vLLM's finish reason, or rejected."""
