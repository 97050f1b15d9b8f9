"""How the deployment classes, which are plain, live as Serve replicas.

Serve awaits a constructor that is a coroutine and a ``__del__`` too; plain classes start and stop
by methods, so that tests need no cluster. The difference is bridged here and nowhere else.
"""

import asyncio
from typing import Any, Protocol

from ray import serve
from starlette.types import ASGIApp

from deployments.replica_accept import accept_many_per_turn
from deployments.replica_port import keep_replica_port_to_node
from deployments.steady_heap import keep_heap, settle_heap


class Startable(Protocol):
    """A deployment class with a life of its own."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    @property
    def is_idle(self) -> bool:
        """Whether nobody waits for this process just now."""


def served(cls: Any) -> type:
    """``cls`` as Serve wants it: started when constructed, stopped when deleted."""

    class Served(cls):
        _heap_task: asyncio.Task[None] | None = None

        async def __init__(self, **settings: Any) -> None:  # type: ignore[misc]  # Serve awaits it
            keep_replica_port_to_node()
            super().__init__(**settings)
            await self.start()
            self._heap_task = _steady_heap(self)

        async def __del__(self) -> None:
            if self._heap_task is not None:
                self._heap_task.cancel()
            await self.stop()

    Served.__name__ = Served.__qualname__ = cls.__name__
    return Served


def served_app(cls: Any) -> type:
    """``cls``, whose ``build`` makes an ASGI app, as an ingress deployment. Stopped as above."""

    class ServedApp(cls):
        _heap_task: asyncio.Task[None] | None = None

        async def __serve_build_asgi_app__(self) -> ASGIApp:
            keep_replica_port_to_node()
            accept_many_per_turn()
            app: ASGIApp = await self.build()
            self._heap_task = _steady_heap(self)
            return app

        async def __del__(self) -> None:
            if self._heap_task is not None:
                self._heap_task.cancel()
            await self.stop()

    ServedApp.__name__ = ServedApp.__qualname__ = cls.__name__
    wrapped: type = serve.ingress()(ServedApp)
    return wrapped


def _steady_heap(replica: Any) -> asyncio.Task[None]:
    settle_heap()
    return asyncio.create_task(keep_heap(lambda: replica.is_idle), name="heap")
