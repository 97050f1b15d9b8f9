"""Tenants take turns at being read."""

import asyncio

import pytest
from starlette.types import Receive, Scope, Send

from app.edge import intake
from app.edge.identity import Identity, current_identity
from app.edge.intake import MOST_AT_ONCE, IntakeMiddleware, Turns

SOON_S = 30.0


async def settle() -> None:
    """Let everything that can run do so."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_tenants_take_turns_and_keep_their_own_order() -> None:
    """A flood's hundredth request comes after another tenant's first and second."""
    turns, entered = Turns(1), []

    async def one(tenant: str, number: int) -> None:
        await turns.enter(tenant)
        entered.append(f"{tenant}{number}")
        turns.leave()

    await turns.enter("first")
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
    turns = Turns(1)
    await turns.enter("a")
    gone = asyncio.create_task(turns.enter("b"))
    called = asyncio.create_task(turns.enter("c"))
    await settle()
    gone.cancel()
    await settle()
    turns.leave()  # calls c
    called.cancel()
    await settle()

    async with asyncio.timeout(SOON_S):
        await turns.enter("d")


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
