"""Clients that go away: what they asked for ends in the engine, and nothing of it stays behind."""

import asyncio

import httpx
import pytest

from tests.cluster.conftest import NUM_ENGINES, NUM_SEATS
from tests.cluster.fleet import Fleet, fleet_when
from tests.cluster.program import Program, stretched
from tests.cluster.traffic import Stream, backlog, completion

pytestmark = pytest.mark.cluster

GONE_WITHIN_S = 2.0
LONG = 8000  # tokens: for many seconds none of these requests ends by itself


async def test_leaving_in_mid_stream_ends_the_request(
    server: Program, http: httpx.AsyncClient
) -> None:
    """A client that closes its stream frees its place in the engine within two seconds."""
    stream = Stream(http, completion(max_tokens=LONG), tenant="leaver")
    await stream.begun()

    await stream.leave()

    await fleet_when(
        http, lambda fleet: fleet.is_idle, "the engine is idle", within_s=stretched(GONE_WITHIN_S)
    )


async def test_leaving_before_the_answer_ends_the_request(
    server: Program, http: httpx.AsyncClient
) -> None:
    """A client that does not wait for its answer in one piece frees its place too."""
    async with backlog(http, "leaver", num_requests=1, max_tokens=LONG):
        await fleet_when(
            http,
            lambda fleet: sum(engine.running for engine in fleet.engines.values()) == 1,
            "it runs",
        )

    await fleet_when(
        http, lambda fleet: fleet.is_idle, "the engine is idle", within_s=stretched(GONE_WITHIN_S)
    )


async def test_leaving_before_the_first_token_ends_the_request(
    server: Program, http: httpx.AsyncClient
) -> None:
    """A client that leaves while its request waits for its turn is forgotten within two seconds."""
    async with backlog(
        http, "sitters", num_requests=NUM_ENGINES * NUM_SEATS, max_tokens=LONG
    ) as sitters:
        await fleet_when(http, lambda fleet: fleet.is_full, "all seats are taken")
        stream = Stream(http, completion(max_tokens=LONG), tenant="sitters")
        await fleet_when(
            http,
            lambda fleet: sum(engine.waiting for engine in fleet.engines.values()) == 1,
            "the request waits",
        )
        assert stream.num_tokens == 0

        await stream.leave()

        await fleet_when(
            http,
            lambda fleet: fleet.tenant("sitters").live == len(sitters),
            "only the others are left",
            within_s=stretched(GONE_WITHIN_S),
        )
        assert not any(sitter.done() for sitter in sitters)


async def test_a_storm_of_leaving_clients_leaves_nothing_behind(
    server: Program, http: httpx.AsyncClient
) -> None:
    """Of 200 clients that leave at once, some in mid-stream, no request and no block is left."""
    before = await fleet_when(http, lambda fleet: fleet.is_idle, "the fleet is idle")
    streams = [Stream(http, completion(max_tokens=LONG), tenant="storm") for _ in range(200)]
    # Not for all of them to arrive: on a slow machine the first have ended before the last come.
    await fleet_when(
        http,
        lambda fleet: fleet.is_full and fleet.tenant("storm").live > NUM_ENGINES * NUM_SEATS,
        "all seats are taken, and some wait",
    )

    await asyncio.gather(*(stream.leave() for stream in streams))

    after = await fleet_when(
        http, lambda fleet: fleet.is_idle, "the fleet is idle", within_s=stretched(5)
    )
    assert blocks_used(after) == blocks_used(before)
    fresh = Stream(http, completion(max_tokens=5), tenant="storm")
    await fresh.end()
    assert fresh.finish_reason == "length"


def blocks_used(fleet: Fleet) -> list[tuple[int, int]]:
    return [(engine.blocks_used, engine.host_blocks_used) for engine in fleet.engines.values()]
