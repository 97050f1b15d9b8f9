"""Equal inputs give equal tokens: streamed or not, on whichever engine, whatever else runs."""

import asyncio
import random

import httpx
import pytest

from tests.cluster.conftest import NUM_ENGINES, NUM_SEATS
from tests.cluster.fleet import fleet_when
from tests.cluster.program import Program
from tests.cluster.traffic import Stream, complete, completion

pytestmark = pytest.mark.cluster


async def test_both_engines_answer_alike(server: Program, http: httpx.AsyncClient) -> None:
    """The same prompts, run on both engines at once, streamed and not, give the same text."""
    body = completion(max_tokens=1500)
    streams = [Stream(http, body, tenant="alike") for _ in range(NUM_SEATS)]
    whole = [asyncio.create_task(complete(http, body, tenant="alike")) for _ in range(NUM_SEATS)]
    await fleet_when(
        http,
        lambda fleet: sum(engine.running > 0 for engine in fleet.engines.values()) == NUM_ENGINES,
        "both engines run some of them",
    )
    await asyncio.gather(*(stream.end() for stream in streams))

    assert {stream.num_tokens for stream in streams} == {1500}
    assert len({*await asyncio.gather(*whole), *(stream.text for stream in streams)}) == 1


async def test_company_does_not_change_an_answer(
    server: Program, http: httpx.AsyncClient, seed: int
) -> None:
    """Requests of mixed lengths answer in a crowd, displacing each other, as they do alone."""
    rng = random.Random(seed)
    bodies = [
        completion("".join(rng.choices("abcdefgh ", k=rng.randint(1, 300))), max_tokens=60)
        for _ in range(12)
    ]
    alone = [await complete(http, body, tenant="alone") for body in bodies]

    crowd = await asyncio.gather(
        *(
            complete(http, body, tenant=f"crowd-{number % 5}")
            for number, body in enumerate(bodies * 4)
        )
    )

    assert crowd == alone * 4
