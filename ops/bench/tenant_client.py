"""The measuring client of several tenants: sends what is due when it is due, notes what comes.

Run as ``python -m ops.bench.tenant_client``: a msgpack ``TenantLoad`` on standard input, a
``TenantLoadResult`` on standard output. Connections and the reading of answers are those of
``ops.bench.client``; here is who sends when. Open-loop requests are encoded before the load
begins; a backlog's when a stream comes to them, since nobody knows how many there will be.
"""

import asyncio
import gc
import sys
from collections.abc import Coroutine, Sequence
from itertools import count, cycle
from random import Random
from time import perf_counter

import msgspec
import uvloop

from ops.bench.client import Connection, Exchange, encode_request, listen
from ops.bench.errors import RequestFailedError
from ops.bench.tenant_load import Answer, Arrival, Backlog, TenantLoad, TenantLoadResult
from ops.bench.workload import WorkItem, random_ids

RETRY_S = 1.0  # a refused stream of a backlog comes again after so long


class TenantClient:
    """All of a load's clients. Lives on one event loop, for one load.

    Every request that was sent is noted exactly once: when its answer has ended, or when it is
    cut off. Those that found no connection yet are noted as cut off too.
    """

    def __init__(self, load: TenantLoad) -> None:
        self._load = load
        self._idle: list[Connection] = []
        self._notes: list[tuple[str, float, Exchange | None]] = []
        self._begin_s = 0.0

    async def run(self) -> TenantLoadResult:
        """The whole load; nothing is open afterwards.

        Raises:
            RequestFailedError: a request broke off.
        """
        requests = [self._encode(f"arrival {n}", a) for n, a in enumerate(self._load.arrivals)]
        gc.disable()  # a collection among the stamps would show as a gap between tokens
        self._begin_s = perf_counter()
        try:
            async with asyncio.TaskGroup() as clients:
                cut_s = await self._run(clients, requests)
        except* (RequestFailedError, OSError) as failed:
            raise failed.exceptions[0] from None
        for connection in self._idle:
            connection.close()
        return TenantLoadResult(self._begin_s, cut_s, [self._answer(*note) for note in self._notes])

    async def _run(self, clients: asyncio.TaskGroup, requests: Sequence[bytes]) -> float:
        """Start everybody and cut them off at the end; when that was."""
        arrivals = [
            clients.create_task(self._arrive(arrival, request))
            for arrival, request in zip(self._load.arrivals, requests, strict=True)
        ]
        streams = [
            clients.create_task(stream)
            for backlog in self._load.backlogs
            for stream in self._streams(backlog)
        ]
        await self._until(self._load.duration_s)
        if arrivals:
            await asyncio.wait(arrivals, timeout=self._load.patience_s)
        cut_s = self._now_s()
        for task in (*arrivals, *streams):
            task.cancel()
        return cut_s

    async def _arrive(self, arrival: Arrival, request: bytes) -> None:
        await self._until(arrival.at_s)
        await self._exchange(arrival.tenant, arrival.at_s, request)

    def _streams(self, backlog: Backlog) -> list[Coroutine[None, None, None]]:
        numbers, shapes = count(), cycle(backlog.shapes)

        async def stream(start_s: float) -> None:
            await self._until(start_s)
            while True:
                arrival = Arrival(self._now_s(), backlog.tenant, next(shapes))
                request = self._encode(f"backlog {next(numbers)}", arrival)
                if await self._exchange(arrival.tenant, arrival.at_s, request) != 200:
                    await asyncio.sleep(RETRY_S)

        return [stream(start_s) for start_s in backlog.starts_s]

    async def _exchange(self, tenant: str, due_s: float, request: bytes) -> int:
        """Send a request and note what came; its HTTP status."""
        connection: Connection | None = None
        exchange: Exchange | None = None
        try:
            connection = await self._connect()
            exchange = await connection.exchange(request)
        except asyncio.CancelledError:
            if connection is not None:
                exchange = connection.so_far()
                connection.close()
            raise
        finally:
            self._notes.append((tenant, due_s, exchange))
        if connection.is_open:
            self._idle.append(connection)
        return exchange.status

    async def _connect(self) -> Connection:
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open:
                return connection
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self._load.host, self._load.port)
        return connection

    def _encode(self, name: str, arrival: Arrival) -> bytes:
        tenant, shape = arrival.tenant, arrival.shape
        prompt = random_ids(Random(f"{self._load.seed} {tenant} {name}"), shape.prompt_tokens)
        item = WorkItem(prompt, shape.output_tokens)
        headers = {"X-Tenant": tenant, **self._load.headers.get(tenant, {})}
        return encode_request(self._load, item, headers)

    def _answer(self, tenant: str, due_s: float, exchange: Exchange | None) -> Answer:
        """What a client saw of one request.

        Raises:
            RequestFailedError: its stream carries an error or ended in the middle.
        """
        if exchange is None or (exchange.is_cut and not exchange.pieces):
            return Answer(tenant, due_s, [], None, None)
        if exchange.status != 200:
            return Answer(tenant, due_s, [], None, exchange.status)
        heard = listen(exchange)
        if heard.num_tokens is None and not exchange.is_cut:
            raise RequestFailedError("a stream ended before its answer did")
        events_s = [at_s - self._begin_s for at_s in heard.arrivals_s]
        return Answer(tenant, due_s, events_s, heard.num_tokens, exchange.status)

    async def _until(self, at_s: float) -> None:
        await asyncio.sleep(at_s - self._now_s())

    def _now_s(self) -> float:
        return perf_counter() - self._begin_s


def main() -> int:
    load = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=TenantLoad)
    try:
        result = uvloop.run(TenantClient(load).run())
    except (RequestFailedError, OSError) as error:
        print(error.reason if isinstance(error, RequestFailedError) else error, file=sys.stderr)
        return 1
    sys.stdout.buffer.write(msgspec.msgpack.encode(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
