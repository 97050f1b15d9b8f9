"""Processes killed outright under load: who notices, and that what was lost comes back."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import psutil
import pytest

from tests.cluster.conftest import NUM_ENGINES
from tests.cluster.fleet import fleet_when, look
from tests.cluster.program import (
    ENGINE_CORE,
    ENGINE_REPLICA,
    GATEWAY,
    ROUTER,
    Program,
    wait_until,
)
from tests.cluster.traffic import Stream, complete, completion

pytestmark = pytest.mark.cluster

BACK_WITHIN_S = 120.0
NUM_STREAMS = 8
LONG = 4000  # tokens: on a slow machine too, none has ended when the engine is killed


async def test_a_killed_engine_is_missed_by_nobody_else(
    server: Program, http: httpx.AsyncClient, seed: int
) -> None:
    """Streams on a killed engine end with a 503 that says so, all others go on, and it comes back.

    A request that comes meanwhile is served by the other engine.
    """
    before = await look(http)
    streams = [
        Stream(http, completion(max_tokens=LONG), tenant="streams") for _ in range(NUM_STREAMS)
    ]
    await asyncio.gather(*(stream.begun() for stream in streams))
    victim = random.Random(seed).choice(server.parts(ENGINE_CORE))

    victim.kill()
    meanwhile = await complete(http, completion(max_tokens=20), tenant="newcomer")
    await asyncio.gather(*(stream.end() for stream in streams))

    whole = [stream for stream in streams if stream.finish_reason == "length"]
    broken = [stream for stream in streams if stream.error is not None]
    assert meanwhile
    assert {stream.num_tokens for stream in whole} == {LONG}
    assert broken
    assert len(whole) + len(broken) == NUM_STREAMS
    for stream in broken:
        assert stream.error is not None
        assert stream.error["code"] == 503
        assert "send it again" in stream.error["message"]
    await fleet_when(
        http,
        lambda fleet: (
            len(fleet.engines.keys() - before.engines.keys()) == 1
            and len(fleet.engines) == NUM_ENGINES
        ),
        "a new engine has taken the place of the killed one",
        within_s=BACK_WITHIN_S,
    )
    await both_engines_serve(http)


async def test_a_killed_router_is_missed_by_nobody(
    server: Program, http: httpx.AsyncClient
) -> None:
    """While the router is gone and comes back no request fails, and the counters go on.

    What clients were given meanwhile is charged, to within 5 %, whichever router saw it.
    """
    before = await fleet_when(http, lambda fleet: fleet.is_idle, "all that ended is charged")
    router = server.part(ROUTER)
    async with endless_requests(http, "steady") as served:
        await until_served(http, served, more=20)

        router.kill()

        await until_served(http, served, more=20)
        wait_until(
            lambda: [process.pid for process in server.parts(ROUTER)] not in ([], [router.pid]),
            "there is a new router",
            within_s=BACK_WITHIN_S,
        )
        await until_served(http, served, more=20)

    after = await fleet_when(
        http,
        lambda fleet: len(fleet.engines) == NUM_ENGINES and fleet.is_idle,
        "both engines have joined the new router",
    )
    assert after.engines.keys() == before.engines.keys()
    charged = after.totals.output_tokens - before.totals.output_tokens
    assert charged == pytest.approx(sum(served), rel=0.05)
    assert after.tenant("steady").output_tokens == pytest.approx(sum(served), rel=0.05)


async def test_a_fleet_without_engines_says_so_and_comes_back(
    server: Program, http: httpx.AsyncClient
) -> None:
    """Killed replicas take their engines along; /health and requests say why until they return."""
    before = await look(http)
    cores = server.parts(ENGINE_CORE)
    replicas = server.parts(ENGINE_REPLICA)

    for replica in replicas:
        replica.kill()

    _, alive = psutil.wait_procs(cores, timeout=30)
    assert alive == [], "an engine outlives its replica"
    health, refused = await unavailable(http)
    assert "no engine" in health["reason"]
    assert refused["code"] == 503
    assert "no engine" in refused["message"]
    await fleet_when(
        http,
        lambda fleet: (
            len(fleet.engines) == NUM_ENGINES and not fleet.engines.keys() & before.engines.keys()
        ),
        "both engines are new",
        within_s=BACK_WITHIN_S,
    )
    await both_engines_serve(http)


async def test_a_killed_gateway_comes_back_and_leaves_no_request_in_the_engines(
    server: Program, http: httpx.AsyncClient
) -> None:
    """Streams of a killed gateway break, the engines abort them, and a new gateway serves."""
    streams = [
        Stream(http, completion(max_tokens=8000), tenant="orphans") for _ in range(NUM_STREAMS)
    ]
    await asyncio.gather(*(stream.begun() for stream in streams))
    gateway = server.part(GATEWAY)

    gateway.kill()

    broken = await asyncio.gather(*(stream.end() for stream in streams), return_exceptions=True)
    assert all(isinstance(error, httpx.HTTPError) for error in broken)
    after = await fleet_when(
        http,
        lambda fleet: fleet.is_idle and len(fleet.engines) == NUM_ENGINES,
        "the orphaned requests are gone",
        within_s=BACK_WITHIN_S,
    )
    assert after.tenant("orphans").output_tokens < NUM_STREAMS * 8000
    await both_engines_serve(http)


async def both_engines_serve(http: httpx.AsyncClient) -> None:
    """The capacity is back: requests run on both engines at once, and end well."""
    async with endless_requests(http, "after"):
        await fleet_when(
            http,
            lambda fleet: (
                len(fleet.engines) == NUM_ENGINES
                and all(engine.running > 0 for engine in fleet.engines.values())
            ),
            "both engines run requests",
        )


async def unavailable(http: httpx.AsyncClient) -> tuple[dict[str, str], dict[str, Any]]:
    """What /health and a request's refusal say, both of them 503."""
    async with asyncio.timeout(30):
        while (health := await http.get("/health")).status_code == 200:
            await asyncio.sleep(0.05)
        assert health.headers["retry-after"]
        answer = await http.post("/v1/completions", json=completion(max_tokens=1))
    assert (health.status_code, answer.status_code) == (503, 503), answer.text
    return health.json(), answer.json()["error"]


@asynccontextmanager
async def endless_requests(http: httpx.AsyncClient, tenant: str) -> AsyncIterator[list[int]]:
    """Keep some requests under way; each that ends adds its tokens to the list. None may fail."""
    served: list[int] = []
    is_over = False

    async def keep_asking() -> None:
        while not is_over:
            stream = Stream(http, completion(max_tokens=100), tenant=tenant)
            await stream.end()
            assert stream.finish_reason == "length", stream.error
            served.append(stream.num_tokens)

    askers = [asyncio.create_task(keep_asking()) for _ in range(4)]
    try:
        yield served
    finally:
        is_over = True
        await asyncio.gather(*askers)


async def until_served(http: httpx.AsyncClient, served: list[int], *, more: int) -> None:
    """Returns after so many requests more."""
    wanted = len(served) + more
    async with asyncio.timeout(BACK_WITHIN_S):
        while len(served) < wanted:
            await asyncio.sleep(0.05)
