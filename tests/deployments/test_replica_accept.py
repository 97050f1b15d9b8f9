"""A replica's HTTP server takes in many connections per turn of its loop."""

import asyncio
import inspect
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import psutil
import pytest
import uvicorn
import uvicorn.server
import uvloop
from ray.serve._private import http_util

from deployments.replica_accept import ACCEPTS_PER_TURN, accept_many_per_turn

NUM_CLIENTS = 64


class Turns:
    """Counts the turns of the running loop while somebody is interested."""

    def __init__(self) -> None:
        self.num = 0
        self._loop = asyncio.get_running_loop()

    def count(self) -> None:
        self.num += 1
        self._handle = self._loop.call_soon(self.count)

    def stop(self) -> None:
        self._handle.cancel()


@asynccontextmanager
async def serving() -> AsyncIterator[tuple[uvicorn.Server, int]]:
    """A server started as Serve starts one, which answers nothing; and its port."""

    async def app(_scope: object, _receive: object, _send: object) -> None: ...

    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None))
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]  # as Serve does
    task = asyncio.create_task(server.serve(sockets=[listener]))
    while not server.started:
        await asyncio.sleep(0)
    try:
        yield server, listener.getsockname()[1]
    finally:
        server.should_exit = True
        await task


async def turns_to_take_in_all() -> int:
    """Turns of the loop between clients' connecting and the server's having all of them."""
    async with serving() as (server, port):
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(NUM_CLIENTS)]
        turns = Turns()
        turns.count()
        while len(server.server_state.connections) < NUM_CLIENTS:
            await asyncio.sleep(0)
        turns.stop()
        for client in clients:
            client.close()
    return turns.num


@pytest.mark.usefixtures("_many_per_turn")
def test_connections_are_taken_in_by_the_handful() -> None:
    """As many a turn as there are handles, or nearly."""
    assert uvloop.run(turns_to_take_in_all()) < 4 * NUM_CLIENTS / ACCEPTS_PER_TURN


@pytest.mark.usefixtures("_one_per_turn")
def test_left_alone_a_server_takes_in_one_a_turn() -> None:
    """Why this is needed; once it fails, it is not needed any more."""
    assert uvloop.run(turns_to_take_in_all()) >= NUM_CLIENTS / 2


@pytest.mark.usefixtures("_many_per_turn")
def test_nothing_listens_any_more_once_the_server_has_ended() -> None:
    """All handles of the port are closed with it."""

    async def port_of_one_that_ended() -> int:
        async with serving() as (_, port):
            return port

    port = uvloop.run(port_of_one_that_ended())

    listening = {
        one.laddr.port for one in psutil.Process().net_connections() if one.status == "LISTEN"
    }
    assert port not in listening


def test_serve_starts_its_servers_by_that_name() -> None:
    """What is exchanged is what Serve looks up."""
    assert http_util.uvicorn is uvicorn
    assert "uvicorn.Server(" in inspect.getsource(http_util.start_asgi_http_server)


@pytest.fixture
def _one_per_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it is before anybody has asked for more, as other tests may have."""
    monkeypatch.setattr(uvicorn, "Server", uvicorn.server.Server)


@pytest.fixture
def _many_per_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uvicorn, "Server", uvicorn.server.Server)
    accept_many_per_turn()
