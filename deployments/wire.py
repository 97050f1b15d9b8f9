"""The sockets between gateways, router and engines: ZeroMQ over TCP, sealed with CURVE.

Owns how a process offers an endpoint, how another reaches it, and one request/reply client.
Leaves what the messages mean to ``messages.py`` and the engine's frames to vLLM. Ray carries
no token and no report: it starts and watches the processes, and hands endpoints around.
An endpoint's public key travels through Ray only, so knowing it is the right to connect.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from itertools import count
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from deployments.errors import RouterAwayError
from deployments.messages import Request, reply_decoder

logger = logging.getLogger(__name__)

# A gateway has to give up an engine that is silent before that engine gives up the gateway and ends
# its requests (``EngineOrder.client_silence_s``): they are to go on elsewhere, not to be cut short.
HEARTBEAT_MS = 2_000
PEER_SILENCE_MS = 8_000


class Endpoint(msgspec.Struct, array_like=True, frozen=True):
    """Where a process listens and the public key that opens the connection."""

    address: str
    public_key: str


# A context makes sockets of its own kind, plain or asyncio; the type checker cannot follow that.
Context = Any
Socket = Any


def bind(
    context: Context, kind: int, host: str, *, keys: tuple[bytes, bytes] | None = None
) -> tuple[Socket, Endpoint]:
    """Offer a socket of ``kind`` on a free port of ``host``."""
    public, secret = keys or zmq.curve_keypair()
    socket = context.socket(kind)
    socket.curve_server = True
    socket.curve_secretkey = secret
    if kind == zmq.ROUTER:
        # A client that connects anew before its old connection is seen to close takes it over.
        socket.router_handover = True
    _prepare(socket)
    port = socket.bind_to_random_port(f"tcp://{host}")
    return socket, Endpoint(f"tcp://{host}:{port}", public.decode())


def connect(
    context: Context,
    kind: int,
    endpoint: Endpoint,
    *,
    identity: bytes | None = None,
    is_same_machine: bool = False,
) -> Socket:
    """Reach ``endpoint``. Returns at once: ZeroMQ connects behind the scenes."""
    public, secret = zmq.curve_keypair()
    socket = context.socket(kind)
    if identity is not None:
        socket.identity = identity
    socket.curve_serverkey = endpoint.public_key.encode()
    socket.curve_publickey, socket.curve_secretkey = public, secret
    _prepare(socket)
    if not is_same_machine:  # which does not vanish from itself; it may be suspended for long
        _expect_signs_of_life(socket)
    socket.connect(endpoint.address)
    return socket


def client_identity(client_index: int) -> bytes:
    """The ZeroMQ identity of an engine's client: its index, so that outputs find their way."""
    # The letter keeps clear of identities that begin with zero, which ZeroMQ keeps for itself.
    return b"c" + client_index.to_bytes(8, "little")


def _prepare(socket: Socket) -> None:
    # A full queue would drop frames in silence, and a lost frame is a lost token.
    socket.sndhwm = 0
    socket.rcvhwm = 0
    socket.linger = 0


def _expect_signs_of_life(socket: Socket) -> None:
    """Have both ends of a connection close it when the other's machine has vanished.

    A machine that loses its power closes no connection. ZeroMQ's own threads ask and answer, so
    a process that is busy or stopped for a while does not count as gone before the timeout.
    """
    socket.heartbeat_ivl = HEARTBEAT_MS
    socket.heartbeat_timeout = PEER_SILENCE_MS
    socket.heartbeat_ttl = PEER_SILENCE_MS  # what the other end goes by


_UNASKED = b""  # in the place of a call's number


class RpcClient:
    """Asks a peer's ROUTER socket and waits for the answer, for a bounded time.

    Replies find their caller by call number, so any number of calls may be under way.
    A peer that is away costs each caller its own timeout and nothing else. What the peer sends
    unasked goes to ``on_push``.
    """

    def __init__(
        self,
        context: zmq.asyncio.Context,
        endpoint: Endpoint,
        on_push: Callable[[msgspec.Struct], None] = lambda _: None,
    ) -> None:
        self.endpoint = endpoint
        self._socket = connect(context, zmq.DEALER, endpoint)
        self._calls = count(1)
        self._on_push = on_push
        self._waiting: dict[int, asyncio.Future[msgspec.Struct]] = {}
        self._encode = msgspec.msgpack.Encoder().encode
        self._reader = asyncio.create_task(self._read(), name="rpc replies")

    async def call(self, request: Request, *, timeout_s: float) -> msgspec.Struct:
        """The peer's answer to ``request``.

        Raises:
            RouterAwayError: no answer within ``timeout_s``.
        """
        number = next(self._calls)
        future: asyncio.Future[msgspec.Struct] = asyncio.get_running_loop().create_future()
        self._waiting[number] = future
        try:
            await self._socket.send_multipart([number.to_bytes(8, "little"), self._encode(request)])
            async with asyncio.timeout(timeout_s):
                return await future
        except TimeoutError:
            raise RouterAwayError(type(request).__name__, timeout_s) from None
        finally:
            self._waiting.pop(number, None)

    @property
    def is_working(self) -> bool:
        return not self._reader.done()

    def close(self) -> None:
        self._reader.cancel()
        self._socket.close()

    async def _read(self) -> None:
        while True:
            number, payload = await self._socket.recv_multipart()
            if number == _UNASKED:
                self._on_push(reply_decoder.decode(payload))
                continue
            future = self._waiting.pop(int.from_bytes(number, "little"), None)
            if future is not None and not future.done():
                future.set_result(reply_decoder.decode(payload))


class RpcServer:
    """Answers calls that arrive on a bound ROUTER socket, one after the other.

    ``answer`` is given who calls and what is asked. It is a plain function: it must not wait, so
    that a call costs its own work only. What it has to say to others it leaves with ``push``.
    """

    def __init__(
        self,
        context: zmq.asyncio.Context,
        host: str,
        answer: Callable[[bytes, bytes], msgspec.Struct],
    ) -> None:
        self._socket, self.endpoint = bind(context, zmq.ROUTER, host)
        self._answer = answer
        self._pushes: deque[tuple[bytes, msgspec.Struct]] = deque()
        self._encode = msgspec.msgpack.Encoder().encode

    async def serve(self) -> None:
        """Answer until cancelled. A call that fails is logged and left unanswered: it times out."""
        while True:
            message = await self._socket.recv_multipart()
            try:
                caller, number, payload = message
                reply = self._encode(self._answer(caller, payload))
            except Exception:
                logger.exception("A call to the router failed")
                continue
            await self._socket.send_multipart([caller, number, reply])
            await self._send_pushes()

    def push(self, caller: bytes, message: msgspec.Struct) -> None:
        """Tell a caller something unasked, after the answer that is being made."""
        self._pushes.append((caller, message))

    async def _send_pushes(self) -> None:
        while self._pushes:
            caller, message = self._pushes.popleft()
            await self._socket.send_multipart([caller, _UNASKED, self._encode(message)])

    def close(self) -> None:
        self._socket.close()
