"""The wire: sealed sockets, and calls that are answered or end within their time."""

import asyncio
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import msgspec
import pytest
import zmq
import zmq.asyncio
from hypothesis import given
from hypothesis import strategies as st

from deployments import wire
from deployments.engine_order import EngineOrder
from deployments.errors import RouterAwayError
from deployments.messages import Ask, Cancel, Directory, Done, Hello, Reply, Request, Snapshot
from deployments.wire import Endpoint, RpcClient, RpcServer
from tests.deployments.stand_ins import HOST, StandInRouter, until

SECONDS = 20.0  # for calls that are answered; how long does not matter
SOON_S = 0.05  # for calls that are not


def context() -> zmq.asyncio.Context:
    return zmq.asyncio.Context.instance()


def call_number(frame: bytes) -> int:
    return int.from_bytes(frame, "little")


@contextmanager
def bound_router() -> Iterator[tuple[zmq.asyncio.Socket, Endpoint]]:
    """The bare socket of a peer that is called."""
    socket, endpoint = wire.bind(context(), zmq.ROUTER, HOST)
    with closing(socket):
        yield socket, endpoint


async def test_what_is_sent_arrives_and_is_answered() -> None:
    """An endpoint that went through msgpack, as Ray would carry it, connects both ways."""
    with bound_router() as (peer, endpoint):
        handed_over = msgspec.msgpack.decode(msgspec.msgpack.encode(endpoint), type=Endpoint)
        with closing(wire.connect(context(), zmq.DEALER, handed_over, identity=b"me")) as mine:
            await mine.send_multipart([b"a", b"", b"b"])
            assert await peer.recv_multipart() == [b"me", b"a", b"", b"b"]

            await peer.send_multipart([b"me", b"answer"])
            assert await mine.recv_multipart() == [b"answer"]


@pytest.mark.parametrize("other_key", ["another peer's", "none"])
async def test_without_the_peers_public_key_nothing_gets_through(other_key: str) -> None:
    """Who knows the address alone is turned away in the handshake, and the peer goes on."""
    with bound_router() as (peer, endpoint):
        if other_key == "none":
            stranger = context().socket(zmq.DEALER)
            refused = zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL | zmq.EVENT_DISCONNECTED
            monitor = stranger.get_monitor_socket(refused)
            stranger.linger = 0
            stranger.connect(endpoint.address)
        else:
            wrong = Endpoint(endpoint.address, zmq.curve_keypair()[0].decode())
            stranger = wire.connect(context(), zmq.DEALER, wrong)
            monitor = stranger.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        with closing(stranger), closing(wire.connect(context(), zmq.DEALER, endpoint)) as friend:
            await stranger.send_multipart([b"let me in"])
            await monitor.recv_multipart()
            await friend.send_multipart([b"hello"])

            _, first = await peer.recv_multipart()
            assert first == b"hello"
            assert not await peer.poll(0)
            stranger.disable_monitor()


def test_a_gateway_gives_up_a_silent_engine_before_the_engine_ends_its_requests() -> None:
    """They go on elsewhere; the other way round their clients would be told that they have all."""
    order = EngineOrder("engine", HOST, {})

    assert order.client_silence_s > (wire.HEARTBEAT_MS + wire.PEER_SILENCE_MS) / 1000


async def test_a_peer_answers_calls() -> None:
    """Each call gets what the peer's function makes of it."""

    def answer(request: Request) -> Reply:
        return Done() if isinstance(request, Cancel) else Snapshot(b"body")

    with StandInRouter(answer) as router:
        with closing(RpcClient(context(), router.endpoint)) as client:
            assert await client.call(Cancel("r1"), timeout_s=SECONDS) == Done()
            assert await client.call(Ask(), timeout_s=SECONDS) == Snapshot(b"body")
        assert router.requests == [Cancel("r1"), Ask()]


async def test_answers_find_their_callers_in_any_order() -> None:
    """Of many calls under way each gets its own answer, whatever the order of the answers."""
    with bound_router() as (peer, endpoint), closing(RpcClient(context(), endpoint)) as client:
        calls = [asyncio.create_task(client.call(Hello(i), timeout_s=SECONDS)) for i in range(100)]
        taken = [await peer.recv_multipart() for _ in calls]
        for caller, number, payload in reversed(taken):
            asked = msgspec.msgpack.decode(payload, type=Hello)
            reply = Snapshot(str(asked.client_index).encode())
            await peer.send_multipart([caller, number, msgspec.msgpack.encode(reply)])

        answers = await asyncio.gather(*calls)
        assert answers == [Snapshot(str(i).encode()) for i in range(100)]


async def test_a_call_without_an_answer_ends_in_its_time() -> None:
    """A silent peer costs a caller its own timeout; the error says what was asked."""
    with bound_router() as (_, endpoint), closing(RpcClient(context(), endpoint)) as client:
        begin_s = time.monotonic()
        with pytest.raises(RouterAwayError, match=r"no answer to Ask within 0\.05 s"):
            await client.call(Ask(), timeout_s=SOON_S)
        assert time.monotonic() - begin_s >= SOON_S


async def test_a_peer_that_is_not_there_costs_no_more_than_one_that_is_silent() -> None:
    """Where nothing listens, a call ends in its time too."""
    nowhere = Endpoint(f"tcp://{HOST}:1", zmq.curve_keypair()[0].decode())
    with closing(RpcClient(context(), nowhere)) as client:
        async with asyncio.timeout(SECONDS):
            with pytest.raises(RouterAwayError):
                await client.call(Ask(), timeout_s=SOON_S)


async def test_callers_wait_for_themselves_only() -> None:
    """One call that is not answered neither delays nor fails another."""
    with bound_router() as (peer, endpoint), closing(RpcClient(context(), endpoint)) as client:
        unanswered = asyncio.create_task(client.call(Cancel("r1"), timeout_s=SECONDS))
        await peer.recv_multipart()
        answered = asyncio.create_task(client.call(Ask(), timeout_s=SECONDS))
        caller, number, _ = await peer.recv_multipart()
        await peer.send_multipart([caller, number, msgspec.msgpack.encode(Done())])

        assert await answered == Done()
        assert not unanswered.done()
        unanswered.cancel()


async def test_an_answer_that_comes_too_late_is_dropped() -> None:
    """It reaches neither the caller that gave up nor the next one."""
    with bound_router() as (peer, endpoint), closing(RpcClient(context(), endpoint)) as client:
        with pytest.raises(RouterAwayError):
            await client.call(Cancel("r1"), timeout_s=SOON_S)
        late_caller, late_number, _ = await peer.recv_multipart()

        next_call = asyncio.create_task(client.call(Ask(), timeout_s=SECONDS))
        caller, number, _ = await peer.recv_multipart()
        late, answer = msgspec.msgpack.encode(Snapshot(b"late")), msgspec.msgpack.encode(Done())
        await peer.send_multipart([late_caller, late_number, late])
        await peer.send_multipart([caller, number, answer])

        assert await next_call == Done()
        assert client.is_working


async def test_a_peer_that_answers_nonsense_is_found_out() -> None:
    """A reply that cannot be read ends the client's reader, and the client says so."""
    with bound_router() as (peer, endpoint), closing(RpcClient(context(), endpoint)) as client:
        with pytest.raises(RouterAwayError):
            await client.call(Ask(), timeout_s=SOON_S)
        caller, number, _ = await peer.recv_multipart()
        call = asyncio.create_task(client.call(Ask(), timeout_s=SECONDS))
        caller, number, _ = await peer.recv_multipart()
        await peer.send_multipart([caller, number, b"nonsense"])

        await until(lambda: not client.is_working)
        call.cancel()


@pytest.mark.parametrize(
    "frames",
    [
        [(1).to_bytes(8, "little"), b"\xc1 is no msgpack"],
        [(1).to_bytes(8, "little"), msgspec.msgpack.encode({"neither": "a request"})],
        [(1).to_bytes(8, "little"), b""],
        [b"too few frames"],
        [b"too", b"many", b"frames"],
    ],
    ids=["not msgpack", "not a request", "empty", "one frame", "three frames"],
)
async def test_a_malformed_call_harms_nobody_else(frames: list[bytes]) -> None:
    """What cannot be read is left unanswered; the next call is answered."""
    with (
        StandInRouter(lambda _: Done()) as router,
        closing(wire.connect(context(), zmq.DEALER, router.endpoint)) as stranger,
        closing(RpcClient(context(), router.endpoint)) as client,
    ):
        await stranger.send_multipart(frames)
        await stranger.send_multipart([(2).to_bytes(8, "little"), msgspec.msgpack.encode(Ask())])
        number, payload = await asyncio.wait_for(stranger.recv_multipart(), SECONDS)

        assert call_number(number) == 2
        assert msgspec.msgpack.decode(payload, type=Done) == Done()
        assert await client.call(Ask(), timeout_s=SECONDS) == Done()


async def test_a_call_whose_handling_fails_is_left_unanswered(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The caller times out, the failure is logged with its cause, and later calls are answered."""

    def answer(_caller: bytes, payload: bytes) -> Reply:
        if b"poison" in payload:
            raise ValueError("it was poisoned")
        return Directory([])

    server = RpcServer(context(), HOST, answer)
    serving = asyncio.create_task(server.serve())
    with closing(server), closing(RpcClient(context(), server.endpoint)) as client:
        with pytest.raises(RouterAwayError):
            await client.call(Cancel("poison"), timeout_s=SOON_S)
        assert await client.call(Ask(), timeout_s=SECONDS) == Directory([])
        serving.cancel()
    assert "it was poisoned" in caplog.text


@given(st.integers(min_value=0, max_value=2**64 - 1), st.integers(min_value=0, max_value=2**64 - 1))
def test_every_client_has_an_identity_of_its_own(one: int, other: int) -> None:
    """Identities differ where client indices do, and none begins with zero, ZeroMQ's own."""
    identities = wire.client_identity(one), wire.client_identity(other)

    assert (identities[0] == identities[1]) == (one == other)
    assert all(identity[0] != 0 and len(identity) <= 255 for identity in identities)
