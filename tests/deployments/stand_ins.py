"""Stand-ins for the other ends of a deployment's sockets: a router and engines that a test steers.

They listen on loopback with the real wire, so that what is tested talks as it always does. Each
is used in a ``with``, from the test's event loop; leaving it closes its sockets, which is how
its peers see it die.
"""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import msgspec
import zmq
import zmq.asyncio

from deployments import wire
from deployments.engine_order import ECHO, HEARTBEAT
from deployments.messages import (
    Admit,
    Ask,
    Called,
    Directory,
    Done,
    EngineCard,
    Hello,
    Placed,
    Refused,
    Reply,
    Request,
    Snapshot,
    request_decoder,
)
from deployments.wire import Endpoint, RpcServer

HOST = "127.0.0.1"
ENGINE_PROGRAM = "tests.deployments.engine_program"
ROOT = str(Path(__file__).parents[2])  # where a process has to look to find that
T = TypeVar("T")
PATIENCE_S = 30.0  # for what takes milliseconds: a shared machine may pause for long


async def until(condition: Callable[[], object]) -> None:
    """Return once ``condition`` holds; fails where it does not come to hold."""
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.002)


class _StandIn:
    """Something with sockets that are closed at the end of a ``with``."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        raise NotImplementedError


class StandInEngine(_StandIn):
    """An engine as its sockets show it: answers heartbeats, keeps what else it is sent.

    While ``is_deaf``, it takes messages and does not answer heartbeats; else with its ``stage``.
    """

    def __init__(self, engine_id: str = "engine-a", *, is_deaf: bool = False) -> None:
        self.is_deaf = is_deaf
        self.stage = ECHO
        self.clients: set[int] = set()
        self._messages: asyncio.Queue[list[bytes]] = asyncio.Queue()
        keys = zmq.curve_keypair()
        context = zmq.asyncio.Context.instance()
        self._input, input_end = wire.bind(context, zmq.PULL, HOST, keys=keys)
        self._output, output_end = wire.bind(context, zmq.ROUTER, HOST, keys=keys)
        self.card = make_card(engine_id, input_end, output_end)
        self._task = asyncio.create_task(self._serve())

    async def received(self) -> list[bytes]:
        """The next message that is no heartbeat."""
        async with asyncio.timeout(PATIENCE_S):
            return await self._messages.get()

    @property
    def num_unread(self) -> int:
        return self._messages.qsize()

    async def send(self, client_index: int, *frames: bytes) -> None:
        await self._output.send_multipart([wire.client_identity(client_index), *frames])

    def close(self) -> None:
        self._task.cancel()
        self._input.close()
        self._output.close()

    async def _serve(self) -> None:
        while True:
            kind, *frames = await self._input.recv_multipart()
            if kind != HEARTBEAT:
                self._messages.put_nowait([kind, *frames])
            elif not self.is_deaf:
                client_index = int.from_bytes(frames[0], "little")
                self.clients.add(client_index)
                await self.send(client_index, self.stage)


def make_card(engine_id: str, input_end: Endpoint, output_end: Endpoint) -> EngineCard:
    return EngineCard(
        engine_id=engine_id,
        input_address=input_end.address,
        output_address=output_end.address,
        public_key=input_end.public_key,
        ready=b"",
        max_num_seqs=8,
        num_blocks=100,
        block_tokens=16,
    )


def unreachable_card(engine_id: str) -> EngineCard:
    """An engine that is listed and where nothing listens."""
    nowhere = Endpoint(f"tcp://{HOST}:1", zmq.curve_keypair()[0].decode())
    return make_card(engine_id, nowhere, nowhere)


class StandInRouter(_StandIn):
    """A router that answers as ``answer`` says, and not at all where that returns None."""

    def __init__(self, answer: Callable[[Request], Reply | None]) -> None:
        self.requests: list[Request] = []
        self._answer = answer
        self._server = RpcServer(zmq.asyncio.Context.instance(), HOST, self._take)
        self._task = asyncio.create_task(self._server.serve())

    @property
    def endpoint(self) -> Endpoint:
        return self._server.endpoint

    def close(self) -> None:
        self._task.cancel()
        self._server.close()

    def _take(self, caller: bytes, payload: bytes) -> msgspec.Struct:
        request = request_decoder.decode(payload)
        self.requests.append(request)
        self._caller = caller
        reply = self._answer(request)
        if reply is None:
            raise NoAnswerError
        return reply


class SteeredRouter(StandInRouter):
    """A router that lists ``cards``, places as ``place`` says, and is silent while ``is_away``."""

    def __init__(self, *engines: StandInEngine) -> None:
        self.cards = [engine.card for engine in engines]
        self.place: Callable[[Admit], Reply | None] = lambda _: Refused("nobody has joined")
        self.body = b"{}"
        self.is_away = False
        self._asker = b""  # who asked for a place last
        super().__init__(self._answer_request)
        self.handle = StandInHandle(self.endpoint)

    def place_on(self, engine_id: str, priority: int = 0) -> None:
        self.place = lambda _: Placed(engine_id, priority)

    def call_up(self, request_id: str, engine_id: str, priority: int = 0) -> None:
        """Tell whoever asked last of a place, right after the next answer to anybody."""
        self._server.push(self._asker, Called(request_id, engine_id, priority))

    def asked(self, kind: type[T]) -> list[T]:
        """The requests of one kind so far."""
        return [request for request in self.requests if isinstance(request, kind)]

    def _answer_request(self, request: Request) -> Reply | None:
        if self.is_away:
            return None
        match request:
            case Admit():
                self._asker = self._caller
                return self.place(request)
            case Hello():
                return Directory(self.cards)
            case Ask():
                return Snapshot(self.body)
            case _:
                return Done()


class NoAnswerError(Exception):
    """Makes the server leave a call unanswered."""


class StandInHandle:
    """Serve's handle of the router: ``where`` it is, if it is anywhere."""

    def __init__(self, where: Endpoint | None = None) -> None:
        self.where = where
        self.num_asked = 0

    @property
    def endpoint(self) -> Self:
        return self

    def remote(self) -> "asyncio.Future[Endpoint]":
        return asyncio.ensure_future(self._find())

    async def _find(self) -> Endpoint:
        self.num_asked += 1
        if self.where is None:
            raise ConnectionError("no router runs")
        return self.where
