"""A process's line to the router: finds it through Serve, talks to it over ZeroMQ, finds it again.

Owns the reconnecting. A call is answered or fails within its own time; while the router is away
calls fail at once and a background search goes on.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

import msgspec
import zmq.asyncio

from deployments.errors import RouterAwayError
from deployments.messages import Request
from deployments.wire import Endpoint, RpcClient

logger = logging.getLogger("ray.serve")

SEARCH_S = 10.0  # for one answer of Serve; a router that restarts takes a few seconds
PAUSE_S = 0.5


class RouterHandle(Protocol):
    """The Serve handle of the router deployment, as far as it is used here."""

    @property
    def endpoint(self) -> "RemoteMethod": ...


class RemoteMethod(Protocol):
    def remote(self) -> "asyncio.Future[Endpoint]": ...


class RouterLink:
    """Calls to whichever router is up now.

    What a router says unasked goes to ``on_push``; ``on_away`` is told when one is given up.
    """

    def __init__(
        self,
        handle: RouterHandle,
        on_push: Callable[[msgspec.Struct], None] = lambda _: None,
        on_away: Callable[[], None] = lambda: None,
    ) -> None:
        self._on_push, self._on_away = on_push, on_away
        self._handle = handle
        self._client: RpcClient | None = None
        self._search: asyncio.Task[None] | None = None

    @property
    def is_up(self) -> bool:
        return self._client is not None

    async def call(self, request: Request, *, timeout_s: float) -> msgspec.Struct:
        """The router's answer.

        Raises:
            RouterAwayError: there is none within ``timeout_s``, or no router is known now.
        """
        client = self._client
        if client is None or not client.is_working:
            self._look_again()
            raise RouterAwayError(type(request).__name__, 0.0)
        try:
            return await client.call(request, timeout_s=timeout_s)
        except RouterAwayError:
            if client is self._client:
                self._drop()
            raise

    async def connect(self) -> None:
        """Find the router; returns once there is one."""
        while True:
            try:
                async with asyncio.timeout(SEARCH_S):
                    endpoint = await self._handle.endpoint.remote()
            except Exception as error:  # noqa: BLE001  (Serve raises many; all mean: not yet)
                logger.info("Router not found yet: %s", error)
                await asyncio.sleep(PAUSE_S)
                continue
            self._client = RpcClient(zmq.asyncio.Context.instance(), endpoint, self._on_push)
            return

    def close(self) -> None:
        if self._search is not None:
            self._search.cancel()
        if self._client is not None:
            self._client.close()
            self._client = None

    def _drop(self) -> None:
        logger.warning("The router does not answer; going on without it")
        if self._client is not None:
            self._client.close()
            self._client = None
        self._on_away()
        self._look_again()

    def _look_again(self) -> None:
        if self._search is None or self._search.done():
            self._search = asyncio.create_task(self.connect(), name="router search")
