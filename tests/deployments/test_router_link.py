"""The line to the router: a call's own time, and finding the router again."""

import asyncio
from contextlib import closing

import pytest

from deployments import router_link
from deployments.errors import RouterAwayError
from deployments.messages import Ask, Done, Reply, Request
from deployments.router_link import RouterLink
from tests.deployments.stand_ins import StandInHandle, StandInRouter, until

SECONDS = 20.0
SOON_S = 0.05


@pytest.fixture(autouse=True)
def _search_quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router_link, "PAUSE_S", 0.002)


def done(_request: Request) -> Reply:
    return Done()


async def test_calls_reach_the_router_that_serve_names() -> None:
    """Serve is asked once; calls then go straight to the router."""
    with StandInRouter(done) as router:
        handle = StandInHandle(router.endpoint)
        with closing(RouterLink(handle)) as link:
            await link.connect()
            answers = [await link.call(Ask(), timeout_s=SECONDS) for _ in range(3)]

    assert answers == [Done()] * 3
    assert handle.num_asked == 1


async def test_connecting_outlasts_a_serve_that_has_no_router_yet() -> None:
    """While Serve raises, the search goes on; it ends with the first router there is."""
    handle = StandInHandle()
    with StandInRouter(done) as router, closing(RouterLink(handle)) as link:
        connecting = asyncio.create_task(link.connect())
        await until(lambda: handle.num_asked > 3)
        assert not connecting.done()
        assert not link.is_up

        handle.where = router.endpoint
        await connecting
        assert link.is_up


async def test_while_no_router_is_known_calls_fail_at_once() -> None:
    """The search goes on behind; no call waits for it."""
    handle = StandInHandle()
    with closing(RouterLink(handle)) as link:
        with pytest.raises(RouterAwayError):
            await asyncio.wait_for(link.call(Ask(), timeout_s=3600), SECONDS)
        assert not link.is_up
        await until(lambda: handle.num_asked > 1)


async def test_a_silent_router_is_looked_for_anew() -> None:
    """A call that times out gives the router up; one that Serve has started since is found."""
    with StandInRouter(lambda _: None) as hung, StandInRouter(done) as fresh:
        handle = StandInHandle(hung.endpoint)
        with closing(RouterLink(handle)) as link:
            await link.connect()
            handle.where = fresh.endpoint
            with pytest.raises(RouterAwayError):
                await link.call(Ask(), timeout_s=SOON_S)

            await until(lambda: link.is_up)
            assert await link.call(Ask(), timeout_s=SECONDS) == Done()


async def test_many_calls_that_fail_start_one_search() -> None:
    """Each caller times out for itself, and they do not look for the router one after the other."""
    with StandInRouter(lambda _: None) as hung:
        handle = StandInHandle(hung.endpoint)
        with closing(RouterLink(handle)) as link:
            await link.connect()
            handle.where = None
            calls = [link.call(Ask(), timeout_s=SOON_S) for _ in range(50)]
            outcomes = await asyncio.gather(*calls, return_exceptions=True)

    assert {type(outcome) for outcome in outcomes} == {RouterAwayError}
    searches = [task for task in asyncio.all_tasks() if task.get_name() == "router search"]
    assert len(searches) <= 1


async def test_a_router_that_talks_nonsense_is_replaced() -> None:
    """After a reply that cannot be read, the router is looked for anew."""

    class Garbage(Done, tag="garbage", frozen=True):
        pass

    with StandInRouter(lambda _: Garbage()) as mad, StandInRouter(done) as fresh:
        handle = StandInHandle(mad.endpoint)
        with closing(RouterLink(handle)) as link:
            await link.connect()
            handle.where = fresh.endpoint
            with pytest.raises(RouterAwayError):
                await link.call(Ask(), timeout_s=SOON_S)
            await until(lambda: link.is_up)
            assert await link.call(Ask(), timeout_s=SECONDS) == Done()
