"""Processes that end unasked under load: who notices, and that what was lost comes back."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import psutil
import pytest

from tests.cluster.conftest import NUM_ENGINES
from tests.cluster.fleet import Fleet, fleet_when, look
from tests.cluster.program import (
    ENGINE_CORE,
    ENGINE_REPLICA,
    GATEWAY,
    ROUTER,
    Program,
    wait_until,
)
from tests.cluster.traffic import Stream, completion

pytestmark = pytest.mark.cluster

BACK_WITHIN_S = 120.0
NUM_STREAMS = 32
NUM_KILLS = 3
NUM_ORPHANS = 8
NUM_PROMPT_TOKENS = 50
ANSWER_TOKENS = 300

# What tokens alone are enough to go on with, and what has to be run again from the start.
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"temperature": 1.0, "seed": 7},
    "penalized": {"presence_penalty": 1.0, "frequency_penalty": 0.1},
    "constrained": {"structured_outputs": {"regex": f"[a-z]{{{ANSWER_TOKENS}}}"}},
}
Answers = dict[tuple[str, int], list[int]]


async def test_killed_engines_are_missed_by_nobody(
    server: Program, http: httpx.AsyncClient, seed: int
) -> None:
    """Engines die and come back, and every answer is token for token that of an undisturbed run.

    Also where one is asked to end by somebody who does not know of our ways to do so. What clients
    were given meanwhile is charged, to within 5 %, whichever engines have said it.
    """
    answers = await undisturbed(http)
    before = await fleet_when(http, lambda fleet: fleet.is_idle, "all that ended is charged")
    choose = random.Random(seed)
    async with repeated_answers(http, answers) as num_right:
        for _ in range(NUM_KILLS):
            await served_again(num_right)
            fleet = await look(http)
            engine = choose.choice(server.parts(ENGINE_CORE))
            choose.choice((engine.kill, engine.terminate))()
            await until_replaced(http, fleet)
        await served_again(num_right)

    after = await fleet_when(http, lambda fleet: fleet.is_idle, "all that ended is charged")
    given = sum(
        num * (NUM_PROMPT_TOKENS + 2 * len(answers[kind, index]))
        for (kind, index), num in num_right.items()
    )
    charged = after.tenant("streams").service - before.tenant("streams").service
    assert charged == pytest.approx(given, rel=0.05)
    await both_engines_serve(http)


async def test_the_successor_of_a_killed_engine_has_its_host_memory(
    server: Program, http: httpx.AsyncClient
) -> None:
    """What an engine has kept of finished requests is there for the one that takes its place."""
    await undisturbed(http)
    fleet = await fleet_when(http, lambda fleet: fleet.is_idle, "all that ended is charged")

    server.parts(ENGINE_CORE)[0].kill()
    await until_replaced(http, fleet)

    after = await look(http)
    [successor] = after.engines.keys() - fleet.engines.keys()
    assert after.engines[successor].switches.adopted_blocks > 0


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
    """Killed replicas take their engines along; /health and new requests say why until they return.

    Streams that had begun wait for the new engines and go on.
    """
    answers = await undisturbed(http)
    before = await look(http)
    cores = server.parts(ENGINE_CORE)
    replicas = server.parts(ENGINE_REPLICA)
    streams = {
        (kind, index): Stream(http, body(kind, index), tenant="streams") for kind, index in answers
    }
    await asyncio.gather(*(streams["greedy", index].begun() for index in range(2)))
    await fleet_when(
        http,
        lambda fleet: (
            fleet.tenant("streams").live + sum(stream.has_ended for stream in streams.values())
            >= len(streams)
        ),
        "none of the requests is still to come: those that find no engine are refused",
    )

    for replica in replicas:
        replica.kill()

    _, alive = psutil.wait_procs(cores, timeout=30)
    assert alive == [], "an engine outlives its replica"
    waiting = [stream for stream in streams.values() if not stream.has_ended]
    assert any(stream.tokens for stream in waiting)
    health, refused = await unavailable(http)
    assert "no engine" in health["reason"]
    assert refused["code"] == 503
    assert "no engine" in refused["message"]
    assert not all(stream.has_ended for stream in waiting)  # some, by what was on its way
    await fleet_when(
        http,
        lambda fleet: (
            len(fleet.engines) == NUM_ENGINES and not fleet.engines.keys() & before.engines.keys()
        ),
        "both engines are new",
        within_s=BACK_WITHIN_S,
    )
    await asyncio.gather(*(stream.end() for stream in streams.values()))
    assert [stream.error for stream in streams.values() if stream.error] == []
    assert {name: stream.tokens for name, stream in streams.items()} == answers
    await both_engines_serve(http)


async def test_a_killed_gateway_comes_back_and_leaves_no_request_in_the_engines(
    server: Program, http: httpx.AsyncClient
) -> None:
    """Streams of a killed gateway break, the engines abort them, and a new gateway serves."""
    streams = [
        Stream(http, completion(max_tokens=8000), tenant="orphans") for _ in range(NUM_ORPHANS)
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
    assert after.tenant("orphans").output_tokens < NUM_ORPHANS * 8000
    await both_engines_serve(http)


def body(kind: str, index: int) -> dict[str, Any]:
    """A request of its kind, with a prompt of its own."""
    choose = random.Random(index)
    prompt = [choose.randrange(40, 120) for _ in range(NUM_PROMPT_TOKENS)]
    return completion(prompt, max_tokens=ANSWER_TOKENS, **KINDS[kind])


async def answer(http: httpx.AsyncClient, kind: str, index: int) -> list[int]:
    """The tokens of a whole answer; it must not fail."""
    stream = Stream(http, body(kind, index), tenant="streams")
    await stream.end()
    assert stream.error is None, f"{kind}: {stream.error}"
    assert stream.finish_reason is not None
    return stream.tokens


async def undisturbed(http: httpx.AsyncClient) -> Answers:
    """What each stream gets while nothing dies."""
    names = [(kind, index) for index in range(NUM_STREAMS // len(KINDS)) for kind in KINDS]
    answers = await asyncio.gather(*(answer(http, *name) for name in names))
    return dict(zip(names, answers, strict=True))


@asynccontextmanager
async def repeated_answers(
    http: httpx.AsyncClient, answers: Answers
) -> AsyncIterator["Counter[tuple[str, int]]"]:
    """Keep asking for all of these at once; counts the right ones, and a wrong one fails."""
    num_right: Counter[tuple[str, int]] = Counter()
    is_over = False

    async def keep_asking(name: tuple[str, int]) -> None:
        while not is_over:
            assert await answer(http, *name) == answers[name], f"{name} is another answer"
            num_right[name] += 1

    async with asyncio.TaskGroup() as askers:
        for name in answers:
            askers.create_task(keep_asking(name))
        yield num_right
        is_over = True


async def served_again(num_right: "Counter[tuple[str, int]]") -> None:
    """Returns once as many answers more have been given as there are streams."""
    wanted = num_right.total() + NUM_STREAMS
    async with asyncio.timeout(BACK_WITHIN_S):
        while num_right.total() < wanted:
            await asyncio.sleep(0.05)


async def until_replaced(http: httpx.AsyncClient, before: Fleet) -> None:
    """Returns once a new engine has taken the place of one of those before."""
    await fleet_when(
        http,
        lambda fleet: (
            len(fleet.engines.keys() - before.engines.keys()) == 1
            and len(fleet.engines) == NUM_ENGINES
        ),
        "a new engine has taken the place of the killed one",
        within_s=BACK_WITHIN_S,
    )


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
async def endless_requests(
    http: httpx.AsyncClient, tenant: str, *, num: int = 4
) -> AsyncIterator[list[int]]:
    """Keep ``num`` requests under way; each that ends adds its tokens to the list, none fails."""
    served: list[int] = []
    is_over = False

    async def keep_asking() -> None:
        while not is_over:
            stream = Stream(http, completion(max_tokens=100), tenant=tenant)
            await stream.end()
            assert stream.finish_reason == "length", stream.error
            served.append(stream.num_tokens)

    askers = [asyncio.create_task(keep_asking()) for _ in range(num)]
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
