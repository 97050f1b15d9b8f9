"""The live requests of the fleet: which there are, where each is, and how far it has come.

Owns the table of requests and its invariant: a live request is on exactly one engine. What
progress is worth (ledger, policies) and where a request should go (placement) is decided
elsewhere.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

import msgspec

from scheduler.admission import AdmitRequest, Wishes
from scheduler.reports import LiveRequest


class TrackedRequest(msgspec.Struct, gc=False):
    """One live request, as the fleet knows it. Counts are tokens and only grow."""

    request_id: str
    tenant: str
    conversation: str | None
    engine_id: str
    arrival_s: float  # wall clock, as stamped by the gateway
    prompt_tokens: int
    max_output_tokens: int | None  # not known of a request that was adopted from a report
    priority: int = 0  # what its engine was last told, or said itself
    prompt_done: int = 0
    output_done: int = 0
    has_started: bool = False  # its engine has run it at least once
    is_running: bool = False
    is_seen: bool = False  # its engine has reported it at least once
    load_units: float = 0.0  # its part of its engine's load
    admitted_s: float = 0.0  # the fleet's clock
    wishes: Wishes = Wishes()
    is_open_ended: bool = False

    @property
    def prompt_left(self) -> int:
        return self.prompt_tokens - self.prompt_done


def announced(request: AdmitRequest, engine_id: str, now_s: float) -> TrackedRequest:
    """A request that a gateway is about to send."""
    return TrackedRequest(
        request_id=request.request_id,
        tenant=request.tenant,
        conversation=request.conversation,
        engine_id=engine_id,
        arrival_s=request.arrival_s,
        prompt_tokens=request.prompt_tokens,
        max_output_tokens=request.max_output_tokens,
        admitted_s=now_s,
        wishes=request.wishes,
        is_open_ended=request.is_open_ended,
    )


def adopted(live: LiveRequest, engine_id: str, now_s: float) -> TrackedRequest:
    """The request behind a report's entry that nobody has announced."""
    return TrackedRequest(
        request_id=live.request_id,
        tenant=live.tenant,
        conversation=live.conversation,
        engine_id=engine_id,
        arrival_s=live.arrival_s,
        prompt_tokens=live.prompt_tokens,
        max_output_tokens=None,
        priority=live.priority,
        prompt_done=min(live.prompt_done, live.prompt_tokens),
        output_done=live.output_done,
        has_started=live.is_running or live.prompt_done > 0 or live.output_done > 0,
        is_running=live.is_running,
        is_seen=True,
        admitted_s=now_s,
    )


@dataclass(slots=True)
class _EngineShare:
    """The requests of one engine, and the sum of their loads."""

    requests: dict[str, TrackedRequest] = field(default_factory=dict)
    load_units: float = 0.0


class RequestTable:
    """Live requests by name and by engine.

    Each request is in the table of exactly one engine, and an engine's load is the sum of
    its requests' loads. Of some requests a sign is expected, a mention in their engine's
    report; those of which none has come in time can be asked for.
    """

    def __init__(self) -> None:
        self._requests: dict[str, TrackedRequest] = {}
        self._engines: dict[str, _EngineShare] = {}
        self._sign_by_s: dict[str, float] = {}  # in the order of the deadlines

    def __len__(self) -> int:
        return len(self._requests)

    def all(self) -> Collection[TrackedRequest]:
        return self._requests.values()

    def get(self, request_id: str) -> TrackedRequest | None:
        return self._requests.get(request_id)

    def on_engine(self, engine_id: str) -> Collection[TrackedRequest]:
        share = self._engines.get(engine_id)
        return share.requests.values() if share else ()

    def load(self, engine_id: str) -> float:
        """Service units the engine's requests are expected to take from now on."""
        share = self._engines.get(engine_id)
        return share.load_units if share else 0.0

    def add(self, request: TrackedRequest) -> None:
        """Take in a request whose name is not in use."""
        assert request.request_id not in self._requests
        share = self._engines.setdefault(request.engine_id, _EngineShare())
        share.requests[request.request_id] = request
        share.load_units += request.load_units
        self._requests[request.request_id] = request

    def remove(self, request: TrackedRequest) -> None:
        share = self._engines[request.engine_id]
        del share.requests[request.request_id], self._requests[request.request_id]
        self._sign_by_s.pop(request.request_id, None)
        share.load_units -= request.load_units
        if not share.requests:
            del self._engines[request.engine_id]  # and with it what rounding has left

    def set_load(self, request: TrackedRequest, load_units: float) -> None:
        self._engines[request.engine_id].load_units += load_units - request.load_units
        request.load_units = load_units

    def await_sign(self, request: TrackedRequest, until_s: float) -> None:
        """Expect a sign of the request; ``until_s`` is never less than in the call before."""
        self._sign_by_s[request.request_id] = until_s

    def note_sign(self, request: TrackedRequest) -> None:
        request.is_seen = True
        self._sign_by_s.pop(request.request_id, None)

    def overdue(self, now_s: float) -> list[TrackedRequest]:
        """Requests of which no sign has come in time."""
        late = []
        for request_id, until_s in self._sign_by_s.items():
            if until_s > now_s:
                break
            late.append(self._requests[request_id])
        return late
