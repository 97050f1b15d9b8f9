"""The live requests of the fleet: which there are, where each is, and how far it has come.

Owns the table of requests and its invariant: a live request is on one engine, or waits for one in
the fleet's line. What progress is worth (ledger, policies) and where a request should go (seating)
is decided elsewhere.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import msgspec

from scheduler.admission import AdmitRequest, Wishes
from scheduler.reports import LiveRequest


class TrackedRequest(msgspec.Struct, gc=False):
    """One live request, as the fleet knows it. Counts are tokens and only grow."""

    request_id: str
    tenant: str
    conversation: str | None
    engine_id: str | None  # None while it waits for one
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
    output_left: float = 0.0  # tokens that it is expected to put out yet
    most_tokens: float = 0.0  # KV that it is expected to hold at its end
    admitted_s: float = 0.0  # the fleet's clock
    wishes: Wishes = Wishes()
    is_open_ended: bool = False
    prefixes: list[int] = []  # forgotten once it has been placed
    avoid: frozenset[str] = frozenset()
    note: Any = None  # its policy's own, while it is live: not for checkpoints

    @property
    def prompt_left(self) -> int:
        return self.prompt_tokens - self.prompt_done

    @property
    def tokens_held(self) -> int:
        """KV that it holds, its whole prompt counted: that is computed soon, or goes with it."""
        return self.prompt_tokens + self.output_done


def announced(request: AdmitRequest, avoid: frozenset[str], now_s: float) -> TrackedRequest:
    """A request that a gateway wants a place for.

    What a lost engine has done of it is done: to compute its KV again is not the tenant's doing.
    """
    return TrackedRequest(
        request_id=request.request_id,
        tenant=request.tenant,
        conversation=request.conversation,
        engine_id=None,
        arrival_s=request.arrival_s,
        prompt_tokens=request.prompt_tokens,
        max_output_tokens=request.max_output_tokens,
        prompt_done=request.prompt_tokens if request.output_done else 0,
        output_done=request.output_done,
        admitted_s=now_s,
        wishes=request.wishes,
        is_open_ended=request.is_open_ended,
        prefixes=request.prefixes,
        avoid=avoid,
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
    """The requests of one engine, and the sums of their loads and of what they will hold."""

    requests: dict[str, TrackedRequest] = field(default_factory=dict)
    load_units: float = 0.0
    most_tokens: float = 0.0

    def add(self, request: TrackedRequest) -> None:
        self.requests[request.request_id] = request
        self.load_units += request.load_units
        self.most_tokens += request.most_tokens

    def remove(self, request: TrackedRequest) -> None:
        del self.requests[request.request_id]
        self.load_units -= request.load_units
        self.most_tokens -= request.most_tokens


class _SharedStrings:
    """One string for all that are equal, for as long as somebody has it.

    ``sys.intern`` would do, but for names that clients make up: some interpreters never free what
    they have interned.
    """

    def __init__(self) -> None:
        self._strings: dict[str, str] = {}
        self._num_holders: dict[str, int] = {}

    def take(self, string: str) -> str:
        shared = self._strings.setdefault(string, string)
        self._num_holders[shared] = self._num_holders.get(shared, 0) + 1
        return shared

    def give_back(self, string: str) -> None:
        """One that has taken the string has it no more."""
        self._num_holders[string] -= 1
        if not self._num_holders[string]:
            del self._num_holders[string], self._strings[string]


class RequestTable:
    """Live requests by name and by engine.

    Each request is in the share of one engine, or of those that wait for one, and an engine's
    load is the sum of its requests' loads. Of some requests a sign is expected, a mention in
    their engine's report; those of which none has come in time can be asked for.
    """

    def __init__(self) -> None:
        self._requests: dict[str, TrackedRequest] = {}
        self._engines: dict[str | None, _EngineShare] = {}
        self._placed_load_units = 0.0
        self._sign_by_s: dict[str, float] = {}  # in the order of the deadlines
        self._tenants = _SharedStrings()

    def __len__(self) -> int:
        return len(self._requests)

    def all(self) -> Collection[TrackedRequest]:
        return self._requests.values()

    def get(self, request_id: str) -> TrackedRequest | None:
        return self._requests.get(request_id)

    def on_engine(self, engine_id: str) -> Collection[TrackedRequest]:
        share = self._engines.get(engine_id)
        return share.requests.values() if share else ()

    def num_on(self, engine_id: str) -> int:
        return len(self.on_engine(engine_id))

    def load(self, engine_id: str) -> float:
        """Service units the engine's requests are expected to take from now on."""
        share = self._engines.get(engine_id)
        return share.load_units if share else 0.0

    @property
    def placed_load(self) -> float:
        """The load of all engines together."""
        return self._placed_load_units

    def most_tokens(self, engine_id: str) -> float:
        """KV of the engine's requests if each held what it holds at its end."""
        share = self._engines.get(engine_id)
        return share.most_tokens if share else 0.0

    def add(self, request: TrackedRequest) -> None:
        """Take in a request whose name is not in use."""
        assert request.request_id not in self._requests
        # One string per tenant, not per request: a pass over all requests reads each one's, and
        # from memory that is seldom in the cache.
        request.tenant = self._tenants.take(request.tenant)
        self._requests[request.request_id] = request
        self._put_on(request)

    def remove(self, request: TrackedRequest) -> None:
        del self._requests[request.request_id]
        self._sign_by_s.pop(request.request_id, None)
        self._tenants.give_back(request.tenant)
        self._take_off(request)

    def place(self, request: TrackedRequest, engine_id: str) -> None:
        """A request that waited, or was expected elsewhere, is on this engine from now on."""
        self._take_off(request)
        request.engine_id = engine_id
        self._put_on(request)

    def set_outlook(
        self, request: TrackedRequest, *, load_units: float, output_left: float
    ) -> None:
        """What is expected of a request now, in service units and in tokens."""
        share = self._engines[request.engine_id]
        most_tokens = request.tokens_held + output_left
        if request.engine_id is not None:
            self._placed_load_units += load_units - request.load_units
        share.load_units += load_units - request.load_units
        share.most_tokens += most_tokens - request.most_tokens
        request.load_units, request.output_left = load_units, output_left
        request.most_tokens = most_tokens

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

    def _put_on(self, request: TrackedRequest) -> None:
        self._engines.setdefault(request.engine_id, _EngineShare()).add(request)
        if request.engine_id is not None:
            self._placed_load_units += request.load_units

    def _take_off(self, request: TrackedRequest) -> None:
        share = self._engines[request.engine_id]
        share.remove(request)
        if request.engine_id is not None:
            self._placed_load_units -= request.load_units
        if not share.requests:
            del self._engines[request.engine_id]  # and with it what rounding has left
        if not self._engines:
            self._placed_load_units = 0.0
