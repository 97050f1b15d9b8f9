"""Tenants take turns at being read."""

import asyncio
from collections import Counter
from contextlib import AsyncExitStack

import pytest
import uvloop
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from app.edge import intake
from app.edge.identity import Identity, current_identity
from app.edge.intake import MOST_AHEAD, MOST_AT_ONCE, IntakeMiddleware, Sender, Turns

SOON_S = 30.0


async def settle() -> None:
    """Let everything that can run do so."""
    for _ in range(20):
        await asyncio.sleep(0)


def sender(tenant: str) -> Sender:
    return tenant, None


async def test_tenants_take_turns_and_keep_their_own_order() -> None:
    """A flood's hundredth request comes after another tenant's first and second."""
    turns, entered = Turns(1, most_ahead=100), []

    async def one(tenant: str, number: int) -> None:
        await turns.enter(sender(tenant))
        entered.append(f"{tenant}{number}")
        turns.leave()

    await turns.enter(sender("first"))
    flood = [asyncio.create_task(one("flood", number)) for number in range(5)]
    await settle()
    quiet = [asyncio.create_task(one("quiet", number)) for number in range(2)]
    await settle()
    assert entered == []
    turns.leave()
    await asyncio.gather(*flood, *quiet)

    assert entered == ["flood0", "quiet0", "flood1", "quiet1", "flood2", "flood3", "flood4"]


async def test_who_leaves_while_waiting_takes_no_turn() -> None:
    """A request given up before its turn, or right as it comes, keeps nobody out."""
    turns = Turns(1, most_ahead=1)
    await turns.enter(sender("a"))
    gone = asyncio.create_task(turns.enter(sender("b")))
    called = asyncio.create_task(turns.enter(sender("c")))
    await settle()
    gone.cancel()
    await settle()
    turns.leave()  # calls c
    called.cancel()
    await settle()

    async with asyncio.timeout(SOON_S):
        await turns.enter(sender("d"))
        turns.leave()
        await turns.enter(sender("c"))


async def test_no_more_of_a_sender_are_read_than_can_be_next() -> None:
    """The others wait until one has its place; those of other senders pass them by."""
    turns, entered = Turns(9, most_ahead=2), []

    async def one(tenant: str) -> None:
        await turns.enter(sender(tenant))
        entered.append(tenant)

    tasks = [asyncio.create_task(one(tenant)) for tenant in ("flood",) * 5 + ("quiet",)]
    await settle()
    assert entered == ["flood", "flood", "quiet"]

    for num_read in (3, 4, 5):
        turns.settle(sender("flood"))
        await settle()
        assert entered.count("flood") == num_read
    await asyncio.gather(*tasks)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("ceslx")), max_size=60))
def test_turns_always_come(events: list[tuple[str, str]]) -> None:
    """Whoever comes, gives up, has been read or is settled: nobody waits while there is room."""
    uvloop.run(_come_and_go(events, most_at_once=2, most_ahead=3))


async def _come_and_go(
    events: list[tuple[str, str]], *, most_at_once: int, most_ahead: int
) -> None:
    turns = Turns(most_at_once, most_ahead)
    reading: list[Sender] = []
    ahead: Counter[Sender] = Counter()
    waiting: dict[asyncio.Task[None], Sender] = {}

    async def one(who: Sender) -> None:
        await turns.enter(who)
        reading.append(who)
        ahead[who] += 1

    def is_room_for(who: Sender) -> bool:
        return len(reading) < most_at_once and ahead[who] < most_ahead

    for tenant, what in events:
        who = sender(tenant)
        mine = [task for task, owner in waiting.items() if owner == who]
        if what in "ce":
            waiting[asyncio.create_task(one(who))] = who
        elif what == "x" and mine:
            mine[-1].cancel()
        elif what == "l" and reading:
            reading.pop()
            turns.leave()
        elif what == "s" and ahead[who] > reading.count(who):
            ahead[who] -= 1
            turns.settle(who)
        await settle()
        waiting = {task: owner for task, owner in waiting.items() if not task.done()}
        assert len(reading) <= most_at_once
        assert max(ahead.values(), default=0) <= most_ahead
        assert not any(is_room_for(owner) for owner in waiting.values())
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)


class Reading:
    """An app that reads each request until the test lets it ask the fleet, or for ever."""

    def __init__(self) -> None:
        self.inside: list[Identity] = []
        self.end = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.inside.append(current_identity.get())
        await self.end.wait()


def sent(app: IntakeMiddleware, tenant: str, method: str = "POST") -> "asyncio.Task[None]":
    """A request of this tenant, on its way."""

    async def ask() -> None:
        current_identity.set(Identity(tenant, None))
        scope = {"type": "http", "method": method, "path": "/v1/completions"}
        await app(scope, asyncio.Queue[dict[str, object]]().get, None)  # type: ignore[arg-type]

    return asyncio.create_task(ask())


async def test_few_are_read_at_a_time_until_they_have_asked() -> None:
    """A request that waits for its place at the fleet keeps nobody from being read."""
    reading = Reading()
    app = IntakeMiddleware(reading)
    tasks = [sent(app, f"tenant{number}") for number in range(2 * MOST_AT_ONCE)]
    await settle()
    assert len(reading.inside) == MOST_AT_ONCE

    with reading.inside[0].admission.asking():
        await settle()
        assert len(reading.inside) == MOST_AT_ONCE + 1
    reading.end.set()
    await asyncio.gather(*tasks)
    assert len(reading.inside) == 2 * MOST_AT_ONCE


async def test_a_request_far_behind_in_its_tenants_row_is_not_read() -> None:
    """Until one before it has its place, or waits where it may be overtaken."""
    reading = Reading()
    app = IntakeMiddleware(reading)
    tasks = [sent(app, "flood") for _ in range(MOST_AHEAD + 2)]
    async with AsyncExitStack() as line:
        for number in range(MOST_AHEAD):
            while len(reading.inside) <= number:
                await asyncio.sleep(0)
            record = reading.inside[number].admission
            line.enter_context(record.asking())
            record.in_line(True)  # noqa: FBT003
        await settle()
        assert len(reading.inside) == MOST_AHEAD

        reading.inside[0].admission.in_line(False)  # noqa: FBT003
        await settle()
        assert len(reading.inside) == MOST_AHEAD + 1
    await settle()
    assert len(reading.inside) == MOST_AHEAD + 2
    reading.end.set()
    await asyncio.gather(*tasks)


async def test_questions_that_cost_nothing_do_not_wait() -> None:
    """Health and the like are answered however many requests are being read."""
    reading = Reading()
    app = IntakeMiddleware(reading)
    tasks = [sent(app, "flood") for _ in range(3 * MOST_AT_ONCE)]
    await settle()
    tasks.append(sent(app, "operator", "GET"))
    await settle()

    assert reading.inside[-1].tenant == "operator"
    reading.end.set()
    await asyncio.gather(*tasks)


async def test_a_slow_body_keeps_the_others_out_for_a_while_only(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Clients that never send their bodies give up their turns in time."""
    monkeypatch.setattr(intake, "MOST_S", 0.01)
    reading = Reading()
    app = IntakeMiddleware(reading)
    tasks = [sent(app, "slow") for _ in range(3 * MOST_AT_ONCE)]

    async with asyncio.timeout(SOON_S):
        while len(reading.inside) < 3 * MOST_AT_ONCE:
            await asyncio.sleep(0.001)
    reading.end.set()
    await asyncio.gather(*tasks)
