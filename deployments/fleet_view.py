"""What a gateway knows of the fleet: the engines it can reach and where a request shall go.

Owns the lines to the engines and keeps them in step with the router's directory. The router
chooses the engine; while it is away the gateway chooses by its own load and gives a tenant's
requests the priority that tenant had last, and a stranger's the most urgent that any had, so
nothing waits for a router, and nobody is held to a limit that only the router could count against.
"""

import asyncio
import logging
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import msgspec
import zmq

from deployments.engine_links import EngineLink
from deployments.errors import NoEngineLeftError, RouterAwayError
from deployments.latest_snapshot import LatestSnapshot
from deployments.messages import (
    Admit,
    Called,
    Cancel,
    Directory,
    EngineCard,
    Hello,
    InLine,
    Lost,
    OverLimit,
    Placed,
    Reply,
    Request,
    ToolsCalled,
)
from deployments.router_link import RouterHandle, RouterLink
from ops.tracing.names import PlacingNote
from scheduler.errors import QuotaExceededError
from scheduler.fleet import STARVING

logger = logging.getLogger("ray.serve")

DIRECTORY_S = 1.0
DIRECTORY_REPLY_S = 2.0
MAX_REMEMBERED_TENANTS = 10_000
RENEW_S = 5.0  # after so long in line a request asks again: a place that was told may be lost
# An engine that was lost and answers again counts as back after this: longer than it takes to end
# what a client that it does not hear any more has there (``EngineOrder.client_silence_s``).
BACK_AFTER_S = 20.0


class FleetView:
    """The engines as one gateway sees them. Lives on one event loop.

    ``on_frames``, ``on_lost`` and ``on_parting`` are set by whoever reads the outputs, before
    ``start``; ``on_placing`` by whoever wants to know why a request has to wait for its place.
    """

    def __init__(self, router: RouterHandle, client_index: int, admit_timeout_s: float) -> None:
        self._router = RouterLink(router, self._take_push, self._router_away)
        self._in_line: dict[str, asyncio.Future[Reply]] = {}
        self._client_index = client_index
        self._admit_timeout_s = admit_timeout_s
        self._links: dict[str, EngineLink] = {}
        self._num_lost = 0
        self._num_open: Counter[str] = Counter()
        self._last_priority: OrderedDict[str, int] = OrderedDict()
        self._snapshot = LatestSnapshot(self._router)
        self._task: asyncio.Task[None] | None = None
        self._calls: set[asyncio.Task[None]] = set()  # that nobody waits for
        self._arrival = asyncio.Event()  # set for a moment whenever an engine has come up
        self.on_frames: Callable[[str, Sequence[zmq.Frame]], None]
        self.on_lost: Callable[[str], None]
        self.on_parting: Callable[[str], None]
        self.on_placing: Callable[[str, PlacingNote], None] = lambda _request_id, _note: None

    async def start(self) -> list[EngineCard]:
        """Find the router and reach the first engine; returns the cards of engines that are up."""
        await self._router.connect()
        self._task = asyncio.create_task(self._follow_directory(), name="directory")
        while not (up := self._up()):
            self.check_alive()
            await asyncio.sleep(0.05)
        return [link.card for link in up]

    def close(self) -> None:
        """Leave the fleet: no task, no socket stays."""
        if self._task is not None:
            self._task.cancel()
        self._snapshot.close()
        for engine_id in list(self._links):
            self._drop(engine_id)
        self._router.close()

    def check_alive(self) -> None:
        """Raises what ended a background task, if anything did."""
        if self._task is not None and self._task.done():
            self._task.result()
        for link in self._links.values():
            link.check_alive()

    @property
    def num_up(self) -> int:
        return len(self._up())

    @property
    def num_at_work(self) -> int:
        """Of those that are up, the engines whose loops go round."""
        return sum(link.is_at_work for link in self._up())

    @property
    def has_router(self) -> bool:
        return self._router.is_up

    def link(self, engine_id: str) -> EngineLink | None:
        return self._links.get(engine_id)

    async def place(
        self, admit: Admit, in_line: Callable[[bool], None] = lambda _in_turn: None
    ) -> tuple[EngineLink, int]:
        """The engine for a request and its priority there; waits in the router's line if it must.

        While it does, ``in_line`` is told whether that keeps the turns of a tenant's requests.

        Raises:
            NoEngineLeftError: no engine can be reached now.
            QuotaExceededError: the request's tenant is past a limit of its own.
        """
        try:
            reply = await self._ask_for_place(admit, in_line)
        except RouterAwayError:
            self.on_placing(admit.request.request_id, PlacingNote.ROUTER_AWAY)
            return self._place_alone(admit)
        except asyncio.CancelledError:
            # The client has left. The router may have admitted its request all the same.
            self._cancel_later(admit.request.request_id)
            raise
        if isinstance(reply, OverLimit):
            raise QuotaExceededError(*msgspec.structs.astuple(reply))
        if isinstance(reply, Placed):
            link = self._links.get(reply.engine_id)
            if link is not None and link.takes_requests:
                self._remember(admit.request.tenant, reply.priority)
                self._num_open[reply.engine_id] += 1
                return link, reply.priority
            # The router is ahead of us or behind: take the request back before going elsewhere.
            await self.cancel(admit.request.request_id)
        self.on_placing(admit.request.request_id, PlacingNote.NO_CHOICE)
        return self._place_alone(admit)

    def still_avoided(self, lost: Sequence[str]) -> list[str]:
        """Those of the engines which a request was lost with that it is not to go back to.

        That is the last one, and each that has not answered for a while since: one that was only
        out of reach may still run what it had of the request, until it misses our old line.
        """
        return [
            engine_id
            for place, engine_id in enumerate(lost, 1)
            if place == len(lost) or not self._is_back(engine_id)
        ]

    async def engine_comes_up(self, within_s: float) -> bool:
        """Whether an engine that cannot be reached now can be within this time; waits for it."""
        try:
            async with asyncio.timeout(within_s):
                return await self._arrival.wait()
        except TimeoutError:
            return False

    async def _ask_for_place(self, admit: Admit, in_line: Callable[[bool], None]) -> msgspec.Struct:
        request_id = admit.request.request_id
        called = self._in_line[request_id] = asyncio.get_running_loop().create_future()
        try:
            while True:
                reply = await self._router.call(admit, timeout_s=self._admit_timeout_s)
                if not isinstance(reply, InLine):
                    return reply
                self.on_placing(request_id, PlacingNote.IN_LINE)
                in_line(reply.in_turn)
                await asyncio.wait([called], timeout=RENEW_S)
                if called.done():
                    return called.result()
        finally:
            del self._in_line[request_id]

    def _take_push(self, message: msgspec.Struct) -> None:
        assert isinstance(message, Called)
        waiting = self._in_line.get(message.request_id)
        if waiting is None:  # its client has left
            self._cancel_later(message.request_id)
        elif not waiting.done():
            waiting.set_result(Placed(message.engine_id, message.priority))

    def _router_away(self) -> None:
        for waiting in self._in_line.values():
            if not waiting.done():
                waiting.set_exception(RouterAwayError("Admit", 0.0))
                waiting.exception()  # seen: whoever waits for it may be in a call of its own

    async def cancel(self, request_id: str) -> None:
        """Take an admitted request back from the router; it may never know, then it forgets it."""
        await self._tell(Cancel(request_id))

    def tools_called(self, tenant: str, conversation: str, tools: list[str]) -> None:
        """Let the router know, if it can be told now; nobody waits for it."""
        self._later(self._tell(ToolsCalled(tenant, conversation, tools)), name="tools called")

    async def _tell(self, request: Request) -> None:
        try:
            await self._router.call(request, timeout_s=self._admit_timeout_s)
        except RouterAwayError:
            logger.debug("The router could not be told: %s", request)

    def _cancel_later(self, request_id: str) -> None:
        self._later(self.cancel(request_id), name="late cancel")

    def _later(self, call: Coroutine[Any, Any, None], *, name: str) -> None:
        task = asyncio.create_task(call, name=name)
        self._calls.add(task)
        task.add_done_callback(self._calls.discard)

    def closed(self, engine_id: str) -> None:
        """A request this gateway had on ``engine_id`` has ended."""
        if engine_id in self._links:
            self._num_open[engine_id] -= 1

    async def snapshot(self) -> bytes:
        """Tenants and engines as JSON, from the router; the last one known while it is away."""
        return await self._snapshot.read()

    def _is_back(self, engine_id: str) -> bool:
        link = self._links.get(engine_id)
        return (
            link is not None
            and link.takes_requests
            and time.monotonic() - link.up_since_s > BACK_AFTER_S
        )

    def _up(self) -> list[EngineLink]:
        return [link for link in self._links.values() if link.is_up]

    def _place_alone(self, admit: Admit) -> tuple[EngineLink, int]:
        candidates = [
            link
            for link in self._links.values()
            if link.takes_requests and link.card.engine_id not in admit.avoid
        ]
        if not candidates:
            raise NoEngineLeftError
        link = min(candidates, key=lambda link: self._num_open[link.card.engine_id])
        self._num_open[link.card.engine_id] += 1
        most_urgent = min(self._last_priority.values(), default=0)
        return link, self._last_priority.get(admit.request.tenant, most_urgent)

    def _remember(self, tenant: str, priority: int) -> None:
        if priority == STARVING:
            return  # it is this request's, for its long wait, and not its tenant's
        self._last_priority[tenant] = priority
        self._last_priority.move_to_end(tenant)
        if len(self._last_priority) > MAX_REMEMBERED_TENANTS:
            self._last_priority.popitem(last=False)

    async def _follow_directory(self) -> None:
        known: set[str] = set()
        while True:
            up = {link.card.engine_id for link in self._up()}
            if not up <= known:
                self._arrival.set()
                self._arrival.clear()
            known = up
            try:
                reply = await self._router.call(
                    Hello(self._client_index), timeout_s=DIRECTORY_REPLY_S
                )
            except RouterAwayError:
                reply = None  # keep the engines we have
            if isinstance(reply, Directory):
                self._match(reply.engines)
            await asyncio.sleep(DIRECTORY_S if self._up() else DIRECTORY_S / 10)

    def _match(self, cards: list[EngineCard]) -> None:
        listed = {card.engine_id for card in cards}
        for card in cards:
            if card.engine_id not in self._links:
                # Also one that was lost, and perhaps only out of reach: it is used once it answers.
                self._links[card.engine_id] = EngineLink(
                    card,
                    self._client_index + self._num_lost,  # no line's before
                    self.on_frames,
                    self._engine_lost,
                    self.on_parting,
                )
        for engine_id in self._links.keys() - listed:
            link = self._links[engine_id]
            # A router that has just restarted lists engines as they join again.
            if link.is_up and not link.is_at_work:
                logger.warning("Engine %s stands still, and the router gave it up", engine_id)
                self._engine_lost(engine_id)
            elif self._num_open[engine_id] <= 0 and not link.is_up:
                self._drop(engine_id)

    def _engine_lost(self, engine_id: str) -> None:
        self._num_lost += 1
        self._drop(engine_id)
        self._later(self._tell(Lost(engine_id)), name="engine lost")
        self.on_lost(engine_id)

    def _drop(self, engine_id: str) -> None:
        self._links.pop(engine_id).close()
        self._num_open.pop(engine_id, None)
