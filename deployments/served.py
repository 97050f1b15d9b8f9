"""How the deployment classes, which are plain, live as Serve replicas.

Serve awaits a constructor that is a coroutine and a ``__del__`` too; plain classes start and stop
by methods, so that tests need no cluster. The difference is bridged here and nowhere else.
"""

from typing import Any, Protocol

from ray import serve
from starlette.types import ASGIApp

from deployments.replica_accept import accept_many_per_turn
from deployments.replica_port import keep_replica_port_to_node
from deployments.steady_heap import settle_heap


class Startable(Protocol):
    """A deployment class with a life of its own."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...


def served(cls: Any) -> type:
    """``cls`` as Serve wants it: started when constructed, stopped when deleted."""

    class Served(cls):
        async def __init__(self, **settings: Any) -> None:  # type: ignore[misc]  # Serve awaits it
            keep_replica_port_to_node()
            super().__init__(**settings)
            await self.start()
            settle_heap()

        async def __del__(self) -> None:
            await self.stop()

    Served.__name__ = Served.__qualname__ = cls.__name__
    return Served


def served_app(cls: Any) -> type:
    """``cls``, whose ``build`` makes an ASGI app, as an ingress deployment. Stopped as above."""

    class ServedApp(cls):
        async def __serve_build_asgi_app__(self) -> ASGIApp:
            keep_replica_port_to_node()
            accept_many_per_turn()
            app: ASGIApp = await self.build()
            settle_heap()
            return app

        async def __del__(self) -> None:
            await self.stop()

    ServedApp.__name__ = ServedApp.__qualname__ = cls.__name__
    wrapped: type = serve.ingress()(ServedApp)
    return wrapped
