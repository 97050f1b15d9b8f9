"""The measuring client: a process that keeps so many streams open and notes when bytes arrive.

Run as ``python -m ops.bench.client``: a msgpack ``Load`` on standard input, a ``LoadResult`` on
standard output. It shares two cores with the servers it measures, so while they work it only
stamps pieces of bodies with the time; reading them comes after the last one (13 microseconds of
CPU per piece on a 2-core AMD EPYC virtual machine, most of it the kernel's; aiohttp takes 23).
"""

import asyncio
import gc
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from time import perf_counter
from types import MappingProxyType
from typing import Protocol, cast

import msgspec
import uvloop
from httptools import HttpResponseParser

from ops.bench.errors import RequestFailedError
from ops.bench.load import Load, LoadResult, Measured
from ops.bench.workload import WorkItem

PATH = "/v1/completions"
REQUEST_TIMEOUT_S = 300.0  # a stalled server must end the benchmark, not hang it


@dataclass(frozen=True, slots=True)
class Exchange:
    """A request and its answer, unread: ``pieces`` of the body, each with its arrival."""

    sent_s: float
    end_s: float
    status: int
    pieces: list[tuple[float, bytes]]
    is_cut: bool = False  # the client left before the end; with no pieces the status means nothing


class _Choice(msgspec.Struct):
    text: str = ""
    token_ids: list[int] | None = None


class _Usage(msgspec.Struct):
    completion_tokens: int


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: object = None


@dataclass(slots=True)
class Heard:
    """The tokens of one answer: when events with some arrived, and at the end how many."""

    arrivals_s: list[float] = field(default_factory=list)
    choices: list[_Choice] = field(default_factory=list)
    num_tokens: int | None = None


class Connection(asyncio.Protocol):
    """One HTTP connection, for one exchange at a time; kept alive between them."""

    def __init__(self) -> None:
        self.is_open = False
        self._parser = HttpResponseParser(self)
        self._answer: asyncio.Future[Exchange] | None = None
        self._pieces: list[tuple[float, bytes]] = []
        self._now_s = self._sent_s = 0.0

    async def exchange(self, request: bytes) -> Exchange:
        """Send ``request`` and wait for the whole answer.

        Raises:
            RequestFailedError: the connection broke, or the answer took too long.
        """
        self._answer, self._pieces = asyncio.get_running_loop().create_future(), []
        self._sent_s = perf_counter()
        self._transport.write(request)
        try:
            async with asyncio.timeout(REQUEST_TIMEOUT_S):
                return await self._answer
        except TimeoutError:
            raise RequestFailedError(f"no end within {REQUEST_TIMEOUT_S:g} s") from None

    def so_far(self) -> Exchange:
        """What has come of an exchange that is given up."""
        status = self._parser.get_status_code()
        return Exchange(self._sent_s, perf_counter(), status, self._pieces, is_cut=True)

    def close(self) -> None:
        self.is_open = False
        self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.is_open = True

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(RequestFailedError(f"the connection broke ({exc})"))

    def data_received(self, data: bytes) -> None:
        self._now_s = perf_counter()
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._pieces.append((self._now_s, body))

    def on_message_complete(self) -> None:
        assert self._answer is not None
        self._answer.set_result(
            Exchange(self._sent_s, self._now_s, self._parser.get_status_code(), self._pieces)
        )
        if not self._parser.should_keep_alive():
            self.close()


async def run(load: Load) -> LoadResult:
    """All of the load's requests, from the first one sent to the last one read.

    Raises:
        RequestFailedError: one was refused or broke off.
    """
    requests = [
        encode_request(load, item, want_token_ids=load.want_token_ids) for item in load.items
    ]
    gc.disable()  # a collection among the stamps would show as a gap between tokens
    exchanges = await _closed_loop(load, requests)
    begin_s = min(exchange.sent_s for exchange in exchanges)
    end_s = max(exchange.end_s for exchange in exchanges)
    return LoadResult(end_s - begin_s, [read(exchange) for exchange in exchanges])


async def _closed_loop(load: Load, requests: Sequence[bytes]) -> list[Exchange]:
    unsent = iter(enumerate(requests))
    exchanges: dict[int, Exchange] = {}

    async def stream() -> None:
        connection = await _connect(load)
        for index, request in unsent:
            if not connection.is_open:
                connection = await _connect(load)
            exchanges[index] = await connection.exchange(request)
        connection.close()

    await asyncio.gather(*(stream() for _ in range(load.streams)))
    return [exchanges[index] for index in range(len(requests))]


async def _connect(load: Load) -> Connection:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(Connection, load.host, load.port)
    return connection


class Target(Protocol):
    """What a request has to know of the load that it is part of."""

    @property
    def host(self) -> str: ...

    @property
    def port(self) -> int: ...

    @property
    def model(self) -> str: ...


def encode_request(
    target: Target,
    item: WorkItem,
    headers: Mapping[str, str] = MappingProxyType({}),
    *,
    want_token_ids: bool = False,
) -> bytes:
    """A streamed, greedy completion of exactly so many tokens, as bytes of HTTP."""
    body = msgspec.json.encode(
        {
            "model": target.model,
            "prompt": item.prompt,
            "max_tokens": item.output_tokens,
            "temperature": 0,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True},
            "return_token_ids": want_token_ids,
        }
    )
    head = [
        f"POST {PATH} HTTP/1.1",
        f"Host: {target.host}:{target.port}",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in headers.items()),
    ]
    if item.conversation is not None:
        head.append(f"X-Session-Id: {item.conversation}")
    return "\r\n".join([*head, "", ""]).encode() + body


def read(exchange: Exchange) -> Measured:
    """What the client of this exchange saw, and when.

    Raises:
        RequestFailedError: it was refused, or its stream carries an error or has no end.
    """
    heard = listen(exchange)
    if heard.num_tokens is None or not heard.arrivals_s:
        rest = b"".join(piece for _, piece in exchange.pieces)[-200:]
        raise RequestFailedError(f"the stream has no end: {_excerpt(rest)}")
    return Measured(
        ttft_s=heard.arrivals_s[0] - exchange.sent_s,
        gaps_s=[later - sooner for sooner, later in pairwise(heard.arrivals_s)],
        num_tokens=heard.num_tokens,
        output=_output(heard.choices),
    )


def listen(exchange: Exchange) -> Heard:
    """What there is of an answer, whether it has come to its end or not.

    Raises:
        RequestFailedError: it is a refusal, or carries an error.
    """
    if exchange.status != 200:
        body = b"".join(piece for _, piece in exchange.pieces)
        raise RequestFailedError(f"HTTP {exchange.status}: {_excerpt(body)}")
    decode = msgspec.json.Decoder(_Event).decode
    heard = Heard()
    for arrival_s, data in _events(exchange.pieces):
        if data == b"[DONE]":
            continue
        event = decode(data)
        if event.error is not None:
            raise RequestFailedError(_excerpt(data))
        if event.choices:
            heard.arrivals_s.append(arrival_s)
            heard.choices += event.choices
        if event.usage is not None:
            heard.num_tokens = event.usage.completion_tokens
    return heard


def _events(pieces: Sequence[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
    """Data of each server-sent event, with the arrival of the piece that completed it."""
    rest = b""
    for arrival_s, piece in pieces:
        *events, rest = (rest + piece).split(b"\n\n")
        for event in events:
            yield arrival_s, event.removeprefix(b"data: ")


def _output(choices: Sequence[_Choice]) -> list[int] | str:
    if any(choice.token_ids for choice in choices):
        return [token for choice in choices for token in choice.token_ids or ()]
    return "".join(choice.text for choice in choices)


def _excerpt(body: bytes) -> str:
    return " ".join(body[:300].decode(errors="replace").split())


def main() -> int:
    load = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=Load)
    try:
        result = uvloop.run(run(load))
    except (RequestFailedError, OSError) as error:
        print(error.reason if isinstance(error, RequestFailedError) else error, file=sys.stderr)
        return 1
    sys.stdout.buffer.write(msgspec.msgpack.encode(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
