"""A gateway's line to one engine: up when both ways are proven, lost once, frames untouched."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Self

import msgspec
import pytest
import zmq
import zmq.asyncio

from deployments import engine_links, wire
from deployments.engine_links import EngineLink
from deployments.engine_order import DRAINING, ECHO, PARTING, STUCK
from deployments.messages import EngineCard
from tests.deployments.stand_ins import StandInEngine, unreachable_card, until

CLIENT = 7


class Reader:
    """What a line has handed over: outputs as bytes, engines lost, engines about to go."""

    def __init__(self) -> None:
        self.frames: list[list[bytes]] = []
        self.lost: list[str] = []
        self.parting: list[str] = []

    def on_frames(self, _engine_id: str, frames: Sequence[zmq.Frame]) -> None:
        self.frames.append([frame.bytes for frame in frames])


@contextmanager
def linked(
    card: EngineCard,
    reader: Reader,
    client: int = CLIENT,
    on_frames: Callable[..., None] | None = None,
) -> Iterator[EngineLink]:
    link = EngineLink(
        card, client, on_frames or reader.on_frames, reader.lost.append, reader.parting.append
    )
    with closing(link):
        yield link


class Cable:
    """A way to an address that can be cut: both ends then stay open and hear nothing more."""

    def __init__(self, address: str) -> None:
        self.is_cut = False
        self._host, _, self._port = address.removeprefix("tcp://").partition(":")
        self._ends: list[asyncio.StreamWriter] = []

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._join_ends, self._host)
        port = self._server.sockets[0].getsockname()[1]
        self.address = f"tcp://{self._host}:{port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for end in self._ends:
            end.close()

    async def _join_ends(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection(self._host, int(self._port))
        self._ends += [writer, far_writer]
        await asyncio.gather(self._pass_on(reader, far_writer), self._pass_on(far_reader, writer))

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            if not self.is_cut:
                writer.write(data)


@pytest.fixture
def reader() -> Reader:
    return Reader()


@pytest.fixture(autouse=True)
def _knock_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_links, "KNOCK_S", 0.002)
    monkeypatch.setattr(engine_links, "HEARTBEAT_S", 0.01)


async def test_a_line_is_up_once_the_engine_has_answered(reader: Reader) -> None:
    """Both ways are proven before it is used; the proof is no output."""
    with StandInEngine(is_deaf=True) as engine, linked(engine.card, reader) as link:
        await link.send([b"a message"])
        assert await engine.received() == [b"a message"]
        assert not link.is_up

        engine.is_deaf = False
        await until(lambda: link.is_up)
        assert engine.clients == {CLIENT}
    assert reader.frames == []


async def test_frames_pass_both_ways_whole_and_in_order(reader: Reader) -> None:
    """Requests of several frames, and outputs of one or many, an empty frame among them."""
    sent = [[bytes([i]), b"x" * (i * 1000)] for i in range(50)]
    outputs = [[b"one"], [b"a", b"", b"b"], [b"\x00" * 100_000]]
    with StandInEngine() as engine, linked(engine.card, reader) as link:
        await until(lambda: link.is_up)
        for frames in sent:
            await link.send(frames)
        assert [await engine.received() for _ in sent] == sent

        for output in outputs:
            await engine.send(CLIENT, *output)
        await until(lambda: len(reader.frames) == len(outputs))
    assert reader.frames == outputs


async def test_an_engine_says_at_which_stage_of_its_way_out_it_is(reader: Reader) -> None:
    """While it drains the line is up and takes no requests; parting is told, and is no output."""
    with StandInEngine("engine-a") as engine, linked(engine.card, reader) as link:
        await until(lambda: link.takes_requests)

        engine.stage = DRAINING
        await until(lambda: not link.takes_requests)
        assert link.is_up
        assert reader.parting == []

        engine.stage = PARTING
        await until(lambda: reader.parting)
        assert (link.is_up, link.takes_requests) == (True, False)
    assert set(reader.parting) == {"engine-a"}
    assert (reader.frames, reader.lost) == ([], [])


async def test_an_engine_whose_loop_stands_still_is_up_and_takes_no_requests(
    reader: Reader,
) -> None:
    """Its requests stay where they are, in case it goes on; new ones go elsewhere."""
    with StandInEngine("engine-a") as engine, linked(engine.card, reader) as link:
        await until(lambda: link.is_at_work)

        engine.stage = STUCK
        await until(lambda: not link.is_at_work)
        assert (link.is_up, link.takes_requests) == (True, False)

        engine.stage = ECHO
        await until(lambda: link.is_at_work and link.takes_requests)
    assert (reader.parting, reader.frames, reader.lost) == ([], [], [])


async def test_two_gateways_get_their_own_outputs(reader: Reader) -> None:
    """Outputs go to the client they are for, and to nobody else."""
    other_reader = Reader()
    with (
        StandInEngine() as engine,
        linked(engine.card, reader, client=1) as one,
        linked(engine.card, other_reader, client=2) as other,
    ):
        await until(lambda: one.is_up and other.is_up)
        await engine.send(1, b"for one")
        await engine.send(2, b"for two")
        await until(lambda: reader.frames and other_reader.frames)

    assert (reader.frames, other_reader.frames) == ([[b"for one"]], [[b"for two"]])


async def test_an_engine_that_dies_is_lost_once(reader: Reader) -> None:
    """When its sockets close the line is down, and that is said once."""
    with StandInEngine("engine-a") as engine, linked(engine.card, reader) as link:
        await until(lambda: link.is_up)
        engine.close()
        await until(lambda: reader.lost)

        assert not link.is_up
        link.check_alive()
    assert reader.lost == ["engine-a"]


async def test_an_engine_whose_machine_vanishes_is_lost(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No connection is closed then: bytes just stop coming, and after a while that means dead."""
    monkeypatch.setattr(wire, "HEARTBEAT_MS", 10)
    monkeypatch.setattr(wire, "PEER_SILENCE_MS", 100)
    with StandInEngine("engine-a") as engine:
        async with Cable(engine.card.output_address) as cable:
            card = msgspec.structs.replace(engine.card, output_address=cable.address)
            with linked(card, reader) as link:
                await until(lambda: link.is_up)
                cable.is_cut = True
                await until(lambda: reader.lost)

                assert not link.is_up
    assert reader.lost == ["engine-a"]


async def test_within_a_machine_silence_breaks_nothing(
    reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A replica's line to its engine outlasts what tells a gateway that the engine has vanished."""
    monkeypatch.setattr(wire, "HEARTBEAT_MS", 10)
    monkeypatch.setattr(wire, "PEER_SILENCE_MS", 100)
    context = zmq.asyncio.Context.instance()
    with StandInEngine("engine-a") as engine:
        async with Cable(engine.card.output_address) as cable:
            card = msgspec.structs.replace(engine.card, output_address=cable.address)
            end = wire.Endpoint(cable.address, card.public_key)
            with closing(wire.connect(context, zmq.DEALER, end, is_same_machine=True)) as line:
                events = line.get_monitor_socket(
                    zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
                )
                await events.recv_multipart()
                with linked(card, reader) as link:
                    await until(lambda: link.is_up)
                    cable.is_cut = True
                    await until(lambda: reader.lost)

                    assert not await events.poll(0)
                line.disable_monitor()


async def test_an_engine_that_was_never_there_is_not_lost(reader: Reader) -> None:
    """A line that never came up has nothing to lose; it goes on knocking without failing."""
    witness = Reader()
    with (
        StandInEngine() as engine,
        linked(unreachable_card("nowhere"), reader) as link,
        linked(engine.card, witness) as other,
    ):
        await until(lambda: other.is_up)
        engine.close()
        await until(lambda: witness.lost)

        link.check_alive()
        assert not link.is_up
    assert reader.lost == []


async def test_a_closed_line_says_nothing_more(reader: Reader) -> None:
    """Closing is our own doing: no engine is reported lost, whatever happens to it then."""
    witness = Reader()
    with StandInEngine() as engine, linked(engine.card, witness, client=1) as other:
        with linked(engine.card, reader, client=2) as link:
            await until(lambda: link.is_up and other.is_up)
        engine.close()
        await until(lambda: witness.lost)
    assert reader.lost == []


async def test_a_reader_that_fails_shows_in_the_lines_health(reader: Reader) -> None:
    """An output that cannot be taken ends the line's task, and its health says why."""

    def fail(_engine_id: str, _frames: Sequence[zmq.Frame]) -> None:
        raise ValueError("no such output")

    with StandInEngine() as engine, linked(engine.card, reader, on_frames=fail) as link:
        await until(lambda: link.is_up)
        link.check_alive()
        await engine.send(CLIENT, b"an output")

        with pytest.raises(ValueError, match="no such output"):
            await until(link.check_alive)
