"""Intake: who comes next when requests arrive faster than a gateway can read them.

Owns the turns of tenants before anything of a request is read. Reading one, checking it and making
a prompt of it takes a gateway milliseconds; were requests read as they come, a tenant that sends
hundreds at once would keep everybody's first token waiting before any scheduler had heard of it.
From where the fleet is asked for a place on, the order is the fleet's.
"""

import asyncio
from collections import OrderedDict, deque
from contextlib import ExitStack

from starlette.types import ASGIApp, Receive, Scope, Send

from app.edge.identity import current_identity

MOST_AT_ONCE = 4  # one that is read while others wait for their bodies
MOST_S = 1.0


class IntakeMiddleware:
    """Lets in few requests at a time until they have asked the fleet; tenants take turns."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._turns = Turns(MOST_AT_ONCE)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        identity = current_identity.get(None)
        if scope["type"] != "http" or scope["method"] != "POST" or identity is None:
            await self._app(scope, receive, send)
            return
        await self._turns.enter(identity.tenant)
        place = ExitStack()
        place.callback(self._turns.leave)
        identity.admission.on_asked = place.close  # which does nothing the second time
        # A client that is slow to send its body must not keep the others out.
        too_long = asyncio.get_running_loop().call_later(MOST_S, place.close)
        place.callback(too_long.cancel)
        with place:
            await self._app(scope, receive, send)


class Turns:
    """At most ``most_at_once`` are inside; tenants take turns, and a tenant's own in their order.

    Nobody waits while there is room. A tenant is listed while somebody of it waits, the one whose
    turn is next first.
    """

    def __init__(self, most_at_once: int) -> None:
        self._num_free = most_at_once
        self._waiting: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    async def enter(self, tenant: str) -> None:
        if self._num_free > 0:
            self._num_free -= 1
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.setdefault(tenant, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled():
                self.leave()  # its turn had just come
            raise

    def leave(self) -> None:
        """Let the next one in, if any waits."""
        while self._waiting:
            tenant, turns = self._waiting.popitem(last=False)
            turn = turns.popleft()
            if turns:
                self._waiting[tenant] = turns
            if not turn.done():
                turn.set_result(None)
                return
        self._num_free += 1
