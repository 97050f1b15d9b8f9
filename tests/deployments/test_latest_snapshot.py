"""The router's snapshot for all who ask a gateway for it: how often the router is asked."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing

import pytest

from deployments import latest_snapshot
from deployments.latest_snapshot import LatestSnapshot
from deployments.messages import Ask
from deployments.router_link import RouterLink
from tests.deployments.stand_ins import PATIENCE_S, SteeredRouter


@asynccontextmanager
async def shown(router: SteeredRouter) -> AsyncIterator[LatestSnapshot]:
    """The snapshots of ``router``, as a gateway has them."""
    with closing(RouterLink(router.handle)) as link:
        await link.connect()
        with closing(LatestSnapshot(link)) as snapshot:
            yield snapshot


@pytest.fixture(autouse=True)
def _be_patient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(latest_snapshot, "REPLY_S", PATIENCE_S)


async def test_all_who_ask_at_once_share_one_snapshot() -> None:
    """A flood of them costs the router no more than one, and who leaves takes it from nobody."""
    with SteeredRouter() as router:
        router.body = b'{"tenants": {}}'
        async with shown(router) as snapshot:
            asking = [asyncio.create_task(snapshot.read()) for _ in range(100)]
            await asyncio.sleep(0)
            asking.pop(0).cancel()

            assert set(await asyncio.gather(*asking)) == {router.body}
            assert len(router.asked(Ask)) == 1


async def test_the_router_has_its_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks again and again is made to wait for it."""
    monkeypatch.setattr(latest_snapshot, "PAUSE_S", 0.01)
    with SteeredRouter() as router:
        async with shown(router) as snapshot:
            begin_s = time.monotonic()
            for _ in range(5):
                await snapshot.read()
            assert time.monotonic() - begin_s >= 4 * 0.01
            assert len(router.asked(Ask)) == 5


async def test_nobody_is_shown_what_was_before_they_asked() -> None:
    """Not by the call that is under way: its answer may have been given already."""
    with SteeredRouter() as router:
        async with shown(router) as snapshot:
            router.body = b'{"now": 1}'
            early = asyncio.create_task(snapshot.read())
            while not router.asked(Ask):
                await asyncio.sleep(0)
            router.body = b'{"now": 2}'
            late = [asyncio.create_task(snapshot.read()) for _ in range(100)]

            assert set(await asyncio.gather(*late)) == {b'{"now": 2}'}
            assert early.done()
            assert len(router.asked(Ask)) == 2
