"""Load that tells whether anything was lost: the same requests again, their answers known.

Owns the streams' kinds, what counts as a right answer, and waiting until so much has been served.
What is done to the server meanwhile is the tests' business.
"""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from tests.cluster.conftest import NUM_ENGINES
from tests.cluster.fleet import Fleet, fleet_when
from tests.cluster.traffic import Stream, completion

BACK_WITHIN_S = 120.0
NUM_STREAMS = 32
NUM_PROMPT_TOKENS = 50
ANSWER_TOKENS = 300
TENANTS = ("even", "odd")  # streams belong to one by their index

# What tokens alone are enough to go on with, and what has to be run again from the start.
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"temperature": 1.0, "seed": 7},
    "penalized": {"presence_penalty": 1.0, "frequency_penalty": 0.1},
    "constrained": {"structured_outputs": {"regex": f"[a-z]{{{ANSWER_TOKENS}}}"}},
}
Name = tuple[str, int]
Answers = dict[Name, list[int]]


@dataclass
class Load:
    """What clients were given so far, of answers that are asked for again and again."""

    answers: Answers
    num_right: Counter[Name] = field(default_factory=Counter)
    broken: list[Stream] = field(default_factory=list)
    longest_gap_s: float = 0.0  # within an answer

    @property
    def num_requests(self) -> int:
        return self.num_right.total() + len(self.broken)

    def service(self, tenant: str) -> int:
        """What it is to be charged: prompts, and twice the tokens that have reached its clients."""
        whole = sum(
            num * _service(len(self.answers[name]))
            for name, num in self.num_right.items()
            if tenant_of(name) == tenant
        )
        broken = [stream for stream in self.broken if stream.tenant == tenant]
        return whole + sum(_service(stream.num_tokens) for stream in broken)


def _service(num_tokens: int) -> int:
    return NUM_PROMPT_TOKENS + 2 * num_tokens


def tenant_of(name: Name) -> str:
    _, index = name
    return TENANTS[index % 2]


def body(kind: str, index: int) -> dict[str, Any]:
    """A request of its kind, with a prompt of its own."""
    choose = random.Random(index)
    prompt = [choose.randrange(40, 120) for _ in range(NUM_PROMPT_TOKENS)]
    return completion(prompt, max_tokens=ANSWER_TOKENS, **KINDS[kind])


async def undisturbed(http: httpx.AsyncClient) -> Answers:
    """What each stream gets while nothing dies."""
    names = [(kind, index) for index in range(NUM_STREAMS // len(KINDS)) for kind in KINDS]
    streams = [Stream(http, body(*name), tenant=tenant_of(name)) for name in names]
    for stream in streams:
        await stream.end()
        assert stream.finish_reason is not None, stream.error
    return {name: stream.tokens for name, stream in zip(names, streams, strict=True)}


def never(_stream: Stream) -> bool:
    return False


@asynccontextmanager
async def repeated_answers(
    http: httpx.AsyncClient, answers: Answers, may_break: Callable[[Stream], bool] = never
) -> AsyncIterator[Load]:
    """Keep asking for all of these at once. A wrong token fails, and so does an answer that breaks.

    Unless ``may_break`` says of a broken one that there is nobody who could have gone on with it.
    """
    load = Load(answers)
    is_over = False

    async def keep_asking(name: Name) -> None:
        while not is_over:
            stream = Stream(http, body(*name), tenant=tenant_of(name))
            try:
                await stream.end()
            except httpx.HTTPError as error:
                stream.error = {"message": repr(error)}
            num_known = stream.num_tokens if stream.error else None
            assert stream.tokens == answers[name][:num_known], f"{name} is another answer"
            if stream.error is None:
                assert stream.finish_reason is not None
                load.num_right[name] += 1
                load.longest_gap_s = max(load.longest_gap_s, stream.longest_gap_s)
            else:
                assert may_break(stream), f"{name} of {stream.served_by}: {stream.error}"
                load.broken.append(stream)

    async with asyncio.TaskGroup() as askers:
        for name in answers:
            askers.create_task(keep_asking(name))
        yield load
        is_over = True


def check_charged(load: Load, before: Fleet, after: Fleet) -> None:
    """What clients were given is charged to their tenants, to within 5 %."""
    for tenant in TENANTS:
        charged = after.tenant(tenant).service - before.tenant(tenant).service
        given = load.service(tenant)
        print(f"{tenant}: charged {charged:.0f}, given {given}: {charged / given - 1:+.1%}")
        assert charged == pytest.approx(given, rel=0.05)


async def served_again(load: Load) -> None:
    """Returns once as many answers more have been given as there are streams."""
    wanted = load.num_right.total() + NUM_STREAMS
    async with asyncio.timeout(BACK_WITHIN_S):
        while load.num_right.total() < wanted:
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
