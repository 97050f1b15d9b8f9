"""Processes that end unasked: who notices, and that what was lost comes back.

That nobody misses them under load is seen on two nodes, in ``test_nodes``.
"""

import asyncio
import random
from typing import Any

import httpx
import psutil
import pytest

from tests.cluster.conftest import NUM_ENGINES
from tests.cluster.fleet import Fleet, fleet_when, look
from tests.cluster.load import (
    BACK_WITHIN_S,
    TENANTS,
    body,
    both_engines_serve,
    tenant_of,
    undisturbed,
    until_replaced,
)
from tests.cluster.program import (
    ENGINE_CORE,
    ENGINE_REPLICA,
    GATEWAY,
    Program,
)
from tests.cluster.traffic import Stream, completion

pytestmark = pytest.mark.cluster

NUM_ORPHANS = 8
NUM_CONVERSATIONS = 8
NUM_CONTEXT_TOKENS = 800
NUM_TURN_TOKENS = 20


async def test_a_killed_engine_s_conversations_go_on_from_its_host_memory(
    server: Program, http: httpx.AsyncClient, seed: int
) -> None:
    """Its neighbour loads 90 % of what it had kept at least, and computes no other token.

    And then what is there passes to the one that takes its place.
    """
    before = await fleet_when(http, lambda fleet: fleet.is_idle, "all that ended is charged")
    turns = await second_turns(http, random.Random(seed))
    answers = await asyncio.gather(*(whole_answer(http, turn) for turn in turns))
    fleet = await fleet_when(http, lambda fleet: fleet.is_idle, "all that ended is charged")

    server.parts(ENGINE_CORE)[0].kill()

    assert await asyncio.gather(*(whole_answer(http, turn) for turn in turns)) == answers
    await until_replaced(http, fleet)
    after = await look(http)
    [killed] = fleet.engines.keys() - after.engines.keys()
    [successor] = after.engines.keys() - fleet.engines.keys()
    [neighbour] = after.engines.keys() & fleet.engines.keys()
    kept = more_switches(before, fleet, killed, "blocks_out")
    assert kept > 0
    assert more_switches(fleet, after, neighbour, "fetched_blocks") >= 0.9 * kept
    assert after.engines[successor].switches.adopted_blocks > 0


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
    streams = {name: Stream(http, body(*name), tenant=tenant_of(name)) for name in answers}
    await asyncio.gather(*(streams["greedy", index].begun() for index in range(2)))
    await fleet_when(
        http,
        lambda fleet: (
            sum(fleet.tenant(tenant).live for tenant in TENANTS)
            + sum(stream.has_ended for stream in streams.values())
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


async def whole_answer(http: httpx.AsyncClient, prompt: list[int]) -> list[int]:
    """The tokens behind a prompt; the request must not fail."""
    stream = Stream(http, completion(prompt, max_tokens=NUM_TURN_TOKENS), tenant="streams")
    await stream.end()
    assert stream.error is None, stream.error
    return stream.tokens


async def second_turns(http: httpx.AsyncClient, choose: random.Random) -> list[list[int]]:
    """Prompts of conversations whose first turn has been answered, on whichever engine."""
    first_turns = [
        [choose.randrange(40, 120) for _ in range(NUM_CONTEXT_TOKENS)]
        for _ in range(NUM_CONVERSATIONS)
    ]
    answers = await asyncio.gather(*(whole_answer(http, turn) for turn in first_turns))
    return [turn + said + [41] for turn, said in zip(first_turns, answers, strict=True)]


def more_switches(before: Fleet, after: Fleet, engine: str, name: str) -> int:
    """By how much one of an engine's ``Switches`` has grown."""
    then, now = (getattr(each.engines[engine].switches, name) for each in (before, after))
    return int(now - then)


async def unavailable(http: httpx.AsyncClient) -> tuple[dict[str, str], dict[str, Any]]:
    """What /health and a request's refusal say, both of them 503."""
    async with asyncio.timeout(30):
        while (health := await http.get("/health")).status_code == 200:
            await asyncio.sleep(0.05)
        assert health.headers["retry-after"]
        answer = await http.post("/v1/completions", json=completion(max_tokens=1))
    assert (health.status_code, answer.status_code) == (503, 503), answer.text
    return health.json(), answer.json()["error"]
