"""How fast a replica's HTTP server takes in connections.

libuv, on which Serve's replicas run their servers, accepts one connection per listening handle and
turn of the event loop. A gateway's turns take ten milliseconds while it passes on the tokens of a
busy fleet: it would take in a hundred connections a second, and whoever comes behind a flood of new
ones waits for all of them before anything can be said of whose turn it is. Serve and uvicorn have
no setting for it, so the socket is listened on through several handles.
"""

import socket
from collections.abc import Sequence

import uvicorn

ACCEPTS_PER_TURN = 16


def accept_many_per_turn() -> None:
    """Have the HTTP servers that this process starts from now on accept so many at a time."""
    uvicorn.Server = _Server  # type: ignore[misc]  # Serve looks it up there


class _Server(uvicorn.Server):
    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets and _several_of_each(sockets))


def _several_of_each(sockets: Sequence[socket.socket]) -> list[socket.socket]:
    """Each socket and more handles of it; whoever closes the server closes them all."""
    more = [one.dup() for one in sockets for _ in range(ACCEPTS_PER_TURN - 1)]
    return [*sockets, *more]
