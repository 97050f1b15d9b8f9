"""Intake: who comes next when requests arrive faster than a gateway can read them.

Owns the turns of tenants before anything of a request is read, and how far ahead of its turn at
the fleet one is read. Reading a request, checking it and making a prompt of it takes a gateway
milliseconds; were requests read as they come, a tenant that sends hundreds at once would keep
everybody's first token waiting before any scheduler had heard of it. So tenants take turns; and
where the fleet serves a tenant's requests in their order, those behind the next few stay unread.
From where the fleet is asked for a place on, the order is the fleet's.
"""

import asyncio
from collections import Counter, OrderedDict, deque
from contextlib import ExitStack
from typing import TypeAlias

from starlette.types import ASGIApp, Receive, Scope, Send

from app.edge.identity import current_identity

MOST_AT_ONCE = 4  # one that is read while others wait for their bodies
MOST_S = 1.0
MOST_AHEAD = 64  # more than the fleet gives a place between a request's call and the next one's

# A tenant's requests of one class: the fleet may serve its classes in any order.
Sender: TypeAlias = tuple[str, str | None]


class IntakeMiddleware:
    """Lets in few requests at a time until they have asked the fleet; senders take turns."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turns = Turns(MOST_AT_ONCE, MOST_AHEAD)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        identity = current_identity.get(None)
        if scope["type"] != "http" or scope["method"] != "POST" or identity is None:
            await self._app(scope, receive, send)
            return
        sender = (identity.tenant, identity.wishes.service_class)
        await self._turns.enter(sender)
        place, ahead = ExitStack(), ExitStack()
        place.callback(self._turns.leave)
        ahead.callback(self._turns.settle, sender)
        # Closed twice, they do nothing the second time.
        identity.admission.on_asked = place.close
        identity.admission.on_settled = ahead.close
        # A client that is slow to send its body must not keep the others out.
        too_long = asyncio.get_running_loop().call_later(MOST_S, place.close)
        place.callback(too_long.cancel)
        with ahead, place:
            await self._app(scope, receive, send)


class Turns:
    """At most ``most_at_once`` are inside, and ``most_ahead`` of a sender are not settled.

    Senders take turns, and a sender's own requests in their order. Nobody waits while there is
    room. A sender is listed while somebody of it waits: among those to be called, the one whose
    turn is next first, or among the full ones, which have to wait for one of theirs to be settled.
    """

    def __init__(self, most_at_once: int, most_ahead: int) -> None:
        self._num_free = most_at_once
        self._most_ahead = most_ahead
        self._num_ahead: Counter[Sender] = Counter()
        self._next: OrderedDict[Sender, deque[asyncio.Future[None]]] = OrderedDict()
        self._full: dict[Sender, deque[asyncio.Future[None]]] = {}

    async def enter(self, sender: Sender) -> None:
        if self._num_free > 0 and self._num_ahead[sender] < self._most_ahead:
            self._take(sender)
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting(sender).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():  # its turn had just come
                self.leave()
                self.settle(sender)
            raise

    def leave(self) -> None:
        """One of those inside is no longer: let the next one in, if any waits."""
        self._num_free += 1
        self._call()

    def settle(self, sender: Sender) -> None:
        """One of the sender's requests has its answer from the fleet, or is over."""
        self._num_ahead[sender] -= 1
        if not self._num_ahead[sender]:
            del self._num_ahead[sender]
        if sender in self._full:
            self._next[sender] = self._full.pop(sender)
        self._call()

    def _waiting(self, sender: Sender) -> deque[asyncio.Future[None]]:
        is_full = self._num_ahead[sender] >= self._most_ahead
        return (self._full if is_full else self._next).setdefault(sender, deque())

    def _take(self, sender: Sender) -> None:
        self._num_free -= 1
        self._num_ahead[sender] += 1

    def _call(self) -> None:
        while self._num_free > 0 and self._next:
            sender, turns = self._next.popitem(last=False)
            turn = turns.popleft()
            if not turn.done():
                self._take(sender)
                turn.set_result(None)
            if turns and self._num_ahead[sender] < self._most_ahead:
                self._next[sender] = turns
            elif turns:
                self._full[sender] = turns
