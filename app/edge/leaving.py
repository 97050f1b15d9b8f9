"""Leaving clients: a request whose client is gone ends the way vLLM ends it.

Serve cancels the call when the client disconnects. vLLM's handlers do not expect that: cancelled
from outside, a request that is not streamed would run on for nobody. They do listen for the
disconnect themselves and then abort in the engine, so they are given the moment that takes.
"""

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

GOODBYE_S = 2.0


class LeavingClientsMiddleware:
    """Keeps the app from being cancelled before it has heard of the disconnect."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        call = asyncio.create_task(self._run(scope, receive, send))
        try:
            await asyncio.shield(call)
        except asyncio.CancelledError:
            await asyncio.wait({call}, timeout=GOODBYE_S)
            call.cancel()
            raise

    async def _run(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app(scope, receive, send)
