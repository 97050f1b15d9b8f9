"""The measuring client sends what it is told and reports what it saw, or what went wrong."""

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import pytest

from ops.bench.client import Exchange, read, run
from ops.bench.errors import RequestFailedError
from ops.bench.load import Load
from ops.bench.workload import WorkItem
from tests.ops.bench.stand_in_server import (
    HOST,
    STREAM_END,
    STREAM_HEAD,
    chunk,
    end,
    event,
    serving,
    tokens,
)


@pytest.fixture(autouse=True)
def _collect_garbage_again() -> Iterator[None]:
    yield
    gc.enable()  # the client stops it for the rest of its process, which here is ours


def make_load(port: int, num_items: int, *, streams: int = 1, **settings: Any) -> Load:
    items = [WorkItem([10 + number], output_tokens=3) for number in range(num_items)]
    return Load(HOST, port, "m", items, streams, **settings)


async def echo_prompt(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    """Three tokens: the prompt's first id, three times."""
    token = body["prompt"][0]
    ids = [token] if body["return_token_ids"] else None
    pieces = [tokens(f"<{token}>", ids) for _ in range(3)]
    writer.write(STREAM_HEAD + chunk(pieces[0]))
    await writer.drain()
    writer.write(chunk(pieces[1] + pieces[2]) + chunk(end(3)) + STREAM_END)


async def test_every_request_is_reported_in_the_order_of_the_load() -> None:
    """Results stand in the order of the items, whichever stream sent them."""
    async with serving(echo_prompt) as server:
        result = await run(make_load(server.port, 7, streams=3))

    assert [one.output for one in result.requests] == [f"<{10 + n}>" * 3 for n in range(7)]
    assert [one.num_tokens for one in result.requests] == [3] * 7
    assert all(0 < one.ttft_s <= result.wall_s for one in result.requests)


async def test_as_many_requests_are_open_as_there_are_streams() -> None:
    """A closed loop: never more at once than streams, and that many while work lasts."""
    everybody_is_here = asyncio.Event()

    async def reply(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        if server.num_open == 4:
            everybody_is_here.set()
        await everybody_is_here.wait()
        await echo_prompt(body, writer)

    async with serving(reply) as server:
        await run(make_load(server.port, 12, streams=4))

    assert (server.most_open, server.num_connections) == (4, 4)


async def test_a_request_asks_for_greedy_streamed_output_of_fixed_length() -> None:
    """All that decides the server's work is in the request; the conversation is in its header."""
    async with serving(echo_prompt) as server:
        item = WorkItem([1, 2, 3], output_tokens=3, conversation="c7")
        await run(Load(HOST, server.port, "m", [item], streams=1))

    [body], [head] = server.bodies, server.heads
    assert (body["prompt"], body["max_tokens"], body["model"]) == ([1, 2, 3], 3, "m")
    assert (body["stream"], body["temperature"], body["ignore_eos"]) == (True, 0, True)
    assert body["stream_options"] == {"include_usage": True}
    assert "X-Session-Id: c7\r\n" in head


async def test_token_ids_are_reported_where_they_were_asked_for() -> None:
    """Ids tell outputs apart that look the same as text."""
    async with serving(echo_prompt) as server:
        result = await run(make_load(server.port, 1, want_token_ids=True))

    assert server.bodies[0]["return_token_ids"] is True
    assert result.requests[0].output == [10, 10, 10]


async def test_a_connection_that_the_server_closes_is_opened_again() -> None:
    """Servers may close a connection after an answer; that is no failure."""

    async def reply(_body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        head = STREAM_HEAD.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")
        writer.write(head + chunk(tokens("a") + end(1)) + STREAM_END)
        writer.close()

    async with serving(reply) as server:
        result = await run(make_load(server.port, 3))

    assert len(result.requests) == server.num_connections == 3


async def test_a_refused_request_fails_the_load_with_the_servers_words() -> None:
    """Numbers of a load of which some was refused would mean nothing."""

    async def reply(_body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        text = b'{"error": {"message": "too long"}}'
        writer.write(b"HTTP/1.1 400 Bad Request\r\ncontent-length: %d\r\n\r\n" % len(text) + text)

    async with serving(reply) as server:
        with pytest.raises(RequestFailedError, match=r"HTTP 400.*too long"):
            await run(make_load(server.port, 1))


async def test_a_broken_connection_fails_the_load() -> None:
    """A stream that breaks off in the middle is not a short answer."""

    async def reply(_body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(tokens("a")))
        await writer.drain()
        writer.close()

    async with serving(reply) as server:
        with pytest.raises(RequestFailedError, match="connection broke"):
            await run(make_load(server.port, 1))


def exchange(*pieces: tuple[float, bytes], status: int = 200) -> Exchange:
    return Exchange(sent_s=1.0, end_s=9.0, status=status, pieces=list(pieces))


def test_an_events_time_is_when_its_last_byte_came() -> None:
    """An event cut in two by the network arrives with its second half."""
    first, second = tokens("a"), tokens("b")
    measured = read(
        exchange((1.5, first[:9]), (1.75, first[9:] + second[:5]), (2.0, second[5:]), (3.0, end(2)))
    )
    assert (measured.ttft_s, measured.gaps_s) == (0.75, [0.25])


def test_tokens_that_share_an_event_are_counted_by_the_usage() -> None:
    """A server that lags puts several tokens into one event; only the usage tells how many."""
    measured = read(exchange((2.0, tokens("a")), (3.0, tokens("bcd")), (3.0, end(4))))
    assert (measured.num_tokens, measured.num_events, measured.gaps_s) == (4, 2, [1.0])
    assert measured.output == "abcd"


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (tokens("a") + event(error={"message": "engine died"}), "engine died"),
        (tokens("a"), "no end"),
        (b"", "no end"),
        (end(0), "no end"),
    ],
)
def test_a_stream_that_does_not_end_well_is_a_failure(body: bytes, problem: str) -> None:
    """An error event, or no usage, or no token at all."""
    with pytest.raises(RequestFailedError, match=problem):
        read(exchange((2.0, body)))
