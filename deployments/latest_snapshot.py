"""The router's snapshot for all who ask one gateway for it, however many they are.

Owns how often the router is asked: one call at a time, none soon after another, each for all who
ask before it begins. So everybody sees what was so when they asked or later, and a flood of
questions is one call in a while: the router has the requests of all gateways to admit. How often
it makes a new one is ``deployments.spared_snapshot``'s, what it holds ``scheduler.snapshot``'s.
"""

import asyncio
import time

from deployments.errors import RouterAwayError
from deployments.messages import Ask, Snapshot
from deployments.router_link import RouterLink

PAUSE_S = 0.1  # from one call's beginning to the next one's
REPLY_S = 2.0


class LatestSnapshot:
    """The newest snapshot that is known. Lives on one event loop."""

    def __init__(self, router: RouterLink) -> None:
        self._router = router
        self._body = b"{}"
        self._next_s = 0.0
        self._turn = asyncio.Lock()
        self._coming: asyncio.Task[None] | None = None  # the call that has not begun yet
        self._calls: set[asyncio.Task[None]] = set()  # that one, and the one before it

    async def read(self) -> bytes:
        """Tenants and engines as JSON; the last that was known while the router is away."""
        if self._coming is None:
            self._coming = asyncio.create_task(self._ask(), name="snapshot")
            self._calls.add(self._coming)
            self._coming.add_done_callback(self._calls.discard)
        # Whoever leaves, leaves alone: others wait for the same answer.
        await asyncio.shield(self._coming)
        return self._body

    def close(self) -> None:
        for call in self._calls:
            call.cancel()

    async def _ask(self) -> None:
        async with self._turn:
            await asyncio.sleep(self._next_s - time.monotonic())
            self._coming = None
            self._next_s = time.monotonic() + PAUSE_S
            try:
                reply = await self._router.call(Ask(), timeout_s=REPLY_S)
            except RouterAwayError:
                return
            assert isinstance(reply, Snapshot)
            self._body = reply.body
