"""What a gateway knows of the fleet: whom it can reach, and where requests go, router or not."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from functools import partial

import msgspec
import pytest

from deployments import engine_links, fleet_view, latest_snapshot, router_link
from deployments.engine_order import DRAINING, STUCK
from deployments.errors import NoEngineLeftError
from deployments.fleet_view import FleetView
from deployments.messages import Admit, Cancel, Hello, InLine, Lost, Placed, ToolsCalled
from scheduler.admission import AdmitRequest
from scheduler.fleet import STARVING
from tests.deployments.stand_ins import (
    PATIENCE_S,
    StandInEngine,
    StandInHandle,
    SteeredRouter,
    unreachable_card,
    until,
)

CLIENT = 7


class View(FleetView):
    """A fleet view that keeps who was lost, and who was about to go."""

    def __init__(self, handle: StandInHandle, admit_timeout_s: float) -> None:
        super().__init__(handle, CLIENT, admit_timeout_s)
        self.lost: list[str] = []
        self.parting: list[str] = []
        self.on_lost, self.on_parting = self.lost.append, self.parting.append
        self.on_frames = lambda _engine_id, _frames: None


@asynccontextmanager
async def joined(router: SteeredRouter, admit_timeout_s: float = PATIENCE_S) -> AsyncIterator[View]:
    """A view that follows ``router`` and reaches all engines it lists."""
    with closing(View(router.handle, admit_timeout_s)) as view:
        async with asyncio.timeout(PATIENCE_S):
            await view.start()
        await until(lambda: view.num_up == len(router.cards))
        yield view


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_links, "KNOCK_S", 0.002)
    monkeypatch.setattr(engine_links, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(fleet_view, "DIRECTORY_S", 0.01)
    monkeypatch.setattr(fleet_view, "DIRECTORY_REPLY_S", 0.5)  # a busy machine may take it
    monkeypatch.setattr(router_link, "PAUSE_S", 0.002)


def admit(request_id: str = "r1", tenant: str = "acme", avoid: tuple[str, ...] = ()) -> Admit:
    return Admit(AdmitRequest(request_id, tenant, None, 10, 10, 0.0), list(avoid))


async def test_starting_waits_for_the_first_engine() -> None:
    """It returns with the cards of the engines that answer, once there is one."""
    with (
        StandInEngine("engine-a", is_deaf=True) as engine,
        SteeredRouter() as router,
        closing(View(router.handle, PATIENCE_S)) as view,
    ):
        starting = asyncio.create_task(view.start())
        await until(lambda: router.requests)
        router.cards.append(engine.card)
        await until(lambda: view.link("engine-a"))
        assert not starting.done()

        engine.is_deaf = False
        assert await starting == [engine.card]


async def test_the_router_places_a_request() -> None:
    """The gateway takes the engine and the priority that the router says."""
    with (
        StandInEngine("engine-a") as a,
        StandInEngine("engine-b") as b,
        SteeredRouter(a, b) as router,
    ):
        async with joined(router) as view:
            router.place_on("engine-b", priority=5)
            link, priority = await view.place(admit())

        assert (link.card.engine_id, priority) == ("engine-b", 5)
        assert router.asked(Admit) == [admit()]


async def test_an_engine_that_drains_gets_no_more_requests() -> None:
    """Also where the router has not heard of it: its place is taken back, another engine found.

    Where none is left a request finds none, as long as that lasts.
    """
    with (
        StandInEngine("engine-a") as a,
        StandInEngine("engine-b") as b,
        SteeredRouter(a, b) as router,
    ):
        async with joined(router) as view:
            router.place_on("engine-a")
            a.stage = DRAINING
            await until(lambda: not _taking(view, "engine-a"))
            link, _ = await view.place(admit())
            assert link.card.engine_id == "engine-b"
            assert router.asked(Cancel) == [Cancel("r1")]

            b.stage = DRAINING
            await until(lambda: not _taking(view, "engine-b"))
            with pytest.raises(NoEngineLeftError):
                await view.place(admit("r2"))
            assert view.num_up == 2


def _taking(view: View, engine_id: str) -> bool:
    link = view.link(engine_id)
    return link is not None and link.takes_requests


async def test_the_router_is_told_of_tools_that_were_called() -> None:
    """While there is one; without it nobody waits and nothing is left behind."""
    with StandInEngine() as engine, SteeredRouter(engine) as router:
        async with joined(router, admit_timeout_s=0.01) as view:
            router.is_away = True
            view.tools_called("acme", "c", ["lost"])
            await until(lambda: not view._calls)

            router.is_away = False
            await until(lambda: view.has_router)
            view.tools_called("acme", "c", ["search", "read"])
            told = ToolsCalled("acme", "c", ["search", "read"])
            await until(lambda: told in router.asked(ToolsCalled))
            await until(lambda: not view._calls)


async def test_without_the_router_the_least_busy_engine_takes_a_request() -> None:
    """By the requests this gateway has open itself, and what ends makes room again."""
    with (
        StandInEngine("engine-a") as a,
        StandInEngine("engine-b") as b,
        SteeredRouter(a, b) as router,
    ):
        async with joined(router, admit_timeout_s=0.01) as view:
            router.is_away = True
            placed = [(await view.place(admit()))[0].card.engine_id for _ in range(6)]
            assert sorted(placed) == ["engine-a"] * 3 + ["engine-b"] * 3

            for _ in range(2):
                view.closed("engine-b")
            placed = [(await view.place(admit()))[0].card.engine_id for _ in range(2)]
            assert placed == ["engine-b"] * 2


async def test_a_silent_router_costs_a_request_its_time_and_later_ones_nothing() -> None:
    """The first waits as long as is allowed; then, until the router is back, nobody waits."""
    with StandInEngine("engine-a") as engine, SteeredRouter(engine) as router:
        async with joined(router, admit_timeout_s=0.2) as view:
            router.is_away, router.handle.where = True, None
            begin_s = time.monotonic()
            await view.place(admit())
            first_s = time.monotonic() - begin_s
            for _ in range(100):
                await view.place(admit())
            later_s = time.monotonic() - begin_s - first_s
            assert first_s >= 0.2
            assert later_s < 100 * 0.2 / 2  # half of what waiting would take: a pause is no failure

            router.is_away, router.handle.where = False, router.endpoint
            router.place_on("engine-a", priority=9)
            await until(lambda: view.has_router)
            view._admit_timeout_s = PATIENCE_S  # it answers, be it late
            assert (await view.place(admit()))[1] == 9


async def test_without_the_router_a_tenant_keeps_its_last_priority() -> None:
    """What the router said last of a tenant holds; others go with the most urgent."""
    with StandInEngine("engine-a") as engine, SteeredRouter(engine) as router:
        async with joined(router, admit_timeout_s=0.05) as view:
            priorities = {"urgent": -3, "patient": 40}
            router.place = lambda asked: Placed("engine-a", priorities[asked.request.tenant])
            for tenant in priorities:
                await view.place(admit(tenant=tenant))
            router.is_away = True

            alone = {
                tenant: (await view.place(admit(tenant=tenant)))[1]
                for tenant in (*priorities, "stranger")
            }
            assert alone == {**priorities, "stranger": -3}


async def test_without_the_router_no_tenant_keeps_the_place_of_one_that_waited_too_long() -> None:
    """That was one request's for a while: its tenant goes on as before, and strangers behind it."""
    with StandInEngine("engine-a") as engine, SteeredRouter(engine) as router:
        async with joined(router) as view:
            router.place_on("engine-a", priority=7)
            await view.place(admit(tenant="waited"))
            router.place_on("engine-a", priority=STARVING)
            await view.place(admit(tenant="waited"))
            router.is_away, view._admit_timeout_s = True, 0.01

            alone = {
                tenant: (await view.place(admit(tenant=tenant)))[1]
                for tenant in ("waited", "stranger")
            }
            assert alone == {"waited": 7, "stranger": 7}


async def test_priorities_of_many_tenants_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tenants heard of longest ago are forgotten first."""
    monkeypatch.setattr(fleet_view, "MAX_REMEMBERED_TENANTS", 3)
    with StandInEngine("engine-a") as engine, SteeredRouter(engine) as router:
        async with joined(router, admit_timeout_s=1.0) as view:
            priorities = {"a": 1, "b": 2, "c": 3, "d": 4}
            router.place = lambda asked: Placed("engine-a", priorities[asked.request.tenant])
            for tenant in ("a", "b", "c", "a", "d"):
                await view.place(admit(tenant=tenant))
            router.is_away = True

            alone = {tenant: (await view.place(admit(tenant=tenant)))[1] for tenant in priorities}
            assert alone == {**priorities, "b": 1}


@pytest.mark.parametrize("is_away", [False, True])
async def test_engines_to_be_avoided_are_avoided(is_away: bool) -> None:  # noqa: FBT001
    """Whether the router is away or refuses: what is left is taken, and nothing means an error."""
    with (
        StandInEngine("engine-a") as a,
        StandInEngine("engine-b") as b,
        SteeredRouter(a, b) as router,
    ):
        async with joined(router, admit_timeout_s=0.05) as view:
            router.is_away = is_away
            link, _ = await view.place(admit(avoid=("engine-a",)))
            assert link.card.engine_id == "engine-b"
            with pytest.raises(NoEngineLeftError):
                await view.place(admit(avoid=("engine-a", "engine-b")))


async def test_an_engine_only_the_router_knows_is_taken_back_and_another_chosen() -> None:
    """The request is cancelled at the router before it goes where the gateway can send it."""
    with StandInEngine("engine-a") as engine, SteeredRouter(engine) as router:
        async with joined(router) as view:
            router.cards.append(unreachable_card("engine-x"))
            await until(lambda: view.link("engine-x"))
            for out_of_reach in ("engine-x", "engine-never-heard-of"):
                router.place_on(out_of_reach)
                link, _ = await view.place(admit(out_of_reach))
                assert link.card.engine_id == "engine-a"
                assert router.asked(Cancel)[-1] == Cancel(out_of_reach)


async def test_a_gateway_that_gives_up_while_it_asks_takes_its_request_back() -> None:
    """A client may leave while its request waits for a placement: the router is told."""
    with StandInEngine("engine-a") as engine, SteeredRouter(engine) as router:
        async with joined(router) as view:
            router.place = lambda _: None
            placing = asyncio.create_task(view.place(admit("r1")))
            await until(lambda: router.asked(Admit))
            placing.cancel()

            await until(lambda: router.asked(Cancel) == [Cancel("r1")])
            with pytest.raises(asyncio.CancelledError):
                await placing


async def test_a_lost_engine_is_reported_once_and_not_used_again() -> None:
    """While the router still lists the dead engine, nothing is sent there. The router is told."""
    with (
        StandInEngine("engine-a") as a,
        StandInEngine("engine-b") as b,
        SteeredRouter(a, b) as router,
    ):
        async with joined(router) as view:
            a.close()
            await until(lambda: view.lost)
            num_asked = len(router.requests)
            await until(lambda: len(router.requests) > num_asked + 3)

            assert view.lost == ["engine-a"]
            assert router.asked(Lost) == [Lost("engine-a")]
            assert view.num_up == 1
            router.place_on("engine-a")
            assert (await view.place(admit()))[0].card.engine_id == "engine-b"


async def test_an_engine_that_stands_still_is_lost_once_the_router_gave_it_up() -> None:
    """By itself either may pass: a long step, and a router that knows of no engine yet."""
    with (
        StandInEngine("engine-a") as a,
        StandInEngine("engine-b") as b,
        SteeredRouter(a, b) as router,
    ):
        async with joined(router) as view:
            router.cards.remove(b.card)
            a.stage = STUCK
            await until(lambda: view.num_at_work == 1)
            num_asked = len(router.asked(Hello))
            await until(lambda: len(router.asked(Hello)) > num_asked + 3)
            assert (view.num_up, view.lost) == (2, [])

            router.cards.remove(a.card)
            await until(lambda: view.lost == ["engine-a"])
            assert view.num_up == 1


async def test_an_engine_that_was_out_of_reach_is_used_again() -> None:
    """It lives and is listed all along; to it the gateway that comes back is another client."""
    with StandInEngine("engine-a") as engine, SteeredRouter(engine) as router:
        async with joined(router) as view:
            link = view.link("engine-a")
            assert link is not None

            view._engine_lost("engine-a")
            assert view.num_up == 0

            await until(lambda: view.num_up == 1)
            router.place_on("engine-a")
            again, _ = await view.place(admit())
            assert again.client_index != link.client_index
            assert engine.clients == {link.client_index, again.client_index}


async def test_an_engine_that_is_back_for_a_while_need_not_be_avoided(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It may have been out of reach alone; but not the last one, nor one that is on its way out."""
    with (
        StandInEngine("engine-a") as a,
        StandInEngine("engine-b") as b,
        SteeredRouter(a, b) as router,
    ):
        async with joined(router) as view:
            await until(lambda: view.num_up == 2)
            assert view.still_avoided([]) == []
            assert view.still_avoided(["engine-a", "engine-b"]) == ["engine-a", "engine-b"]

            monkeypatch.setattr(fleet_view, "BACK_AFTER_S", -1.0)
            assert view.still_avoided(["engine-a", "engine-b"]) == ["engine-b"]
            assert view.still_avoided(["engine-gone", "engine-b"]) == ["engine-gone", "engine-b"]

            a.stage = DRAINING
            await until(lambda: not _taking(view, "engine-a"))
            assert view.still_avoided(["engine-a", "engine-b"]) == ["engine-a", "engine-b"]


async def test_a_restarted_engine_is_a_new_one() -> None:
    """It comes back under another name and is reached beside the others."""
    with (
        StandInEngine("engine-a") as a,
        StandInEngine("engine-b") as b,
        SteeredRouter(a) as router,
    ):
        async with joined(router) as view:
            a.close()
            await until(lambda: view.lost)
            router.cards[:] = [b.card]
            await until(lambda: view.num_up == 1)
            router.place_on("engine-b")
            assert (await view.place(admit()))[0].card.engine_id == "engine-b"
            assert view.lost == ["engine-a"]


async def test_engines_outlast_a_router_that_has_just_restarted() -> None:
    """A new router lists nobody yet: engines that answer are kept, with or without requests."""
    with StandInEngine("engine-a") as engine, SteeredRouter(engine) as router:
        async with joined(router) as view:
            router.cards.clear()
            num_asked = len(router.requests)
            await until(lambda: len(router.requests) > num_asked + 3)

            assert view.num_up == 1
            assert view.lost == []


async def test_an_engine_that_never_came_up_is_dropped_with_its_listing() -> None:
    """Engines that come and go unreached do not pile up."""
    with StandInEngine("engine-a") as engine, SteeredRouter(engine) as router:
        async with joined(router) as view:
            for i in range(5):
                router.cards[1:] = [unreachable_card(f"engine-{i}")]
                await until(partial(view.link, f"engine-{i}"))
            router.cards[1:] = []
            await until(lambda: view.link("engine-4") is None)

            assert [view.link(f"engine-{i}") for i in range(5)] == [None] * 5


async def test_the_last_snapshot_outlives_the_router(monkeypatch: pytest.MonkeyPatch) -> None:
    """People see the router's numbers, while it is away the last ones."""
    with StandInEngine("engine-a") as engine, SteeredRouter(engine) as router:
        async with joined(router) as view:
            router.body = msgspec.json.encode({"tenants": {}})
            assert await view.snapshot() == router.body
            router.is_away = True
            monkeypatch.setattr(latest_snapshot, "REPLY_S", 0.05)
            assert await view.snapshot() == router.body


async def test_a_directory_that_cannot_be_followed_shows_in_the_health() -> None:
    """The task that follows the router is supervised: its death is the view's."""
    with StandInEngine("engine-a") as engine, SteeredRouter(engine) as router:
        async with joined(router) as view:
            view.check_alive()
            router.cards.append(msgspec.structs.replace(engine.card, engine_id="b", public_key="?"))

            with pytest.raises(Exception, match=r"Invalid argument|key"):
                await until(view.check_alive)


async def test_engines_that_come_and_go_leave_nothing_behind() -> None:
    """A gateway that lives for months sees many: none is remembered once it is no longer listed."""
    with StandInEngine("engine-a") as engine, SteeredRouter(engine) as router:
        async with joined(router) as view:
            for i in range(5):
                with StandInEngine(f"engine-{i}") as passing:
                    router.cards.append(passing.card)
                    await until(lambda: view.num_up == 2)
                    router.place_on(f"engine-{i}")
                    await view.place(admit())
                await until(lambda: view.num_up == 1)
                view.closed(f"engine-{i}")
                router.cards.pop()
            await until(lambda: view._links.keys() == {"engine-a"})

            assert len(view.lost) == 5
            assert view._num_open.keys() <= {"engine-a"}


async def test_a_request_waits_in_line_until_it_is_called() -> None:
    """However long that is: the router has answered, and says hello as ever."""
    with StandInEngine("engine-a") as engine, SteeredRouter(engine) as router:
        async with joined(router) as view:
            router.place = lambda _: InLine()
            placing = asyncio.create_task(view.place(admit("r1")))
            await until(lambda: router.asked(Admit))
            num_hellos = len(router.asked(Hello))
            await until(lambda: len(router.asked(Hello)) > num_hellos + 60)
            assert not placing.done()

            router.call_up("r1", "engine-a", priority=3)
            link, priority = await placing

        assert (link.card.engine_id, priority) == ("engine-a", 3)


async def test_a_place_that_got_lost_is_asked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request that has been in line for long asks again, as if it had not."""
    monkeypatch.setattr(fleet_view, "RENEW_S", 0.01)
    with StandInEngine("engine-a") as engine, SteeredRouter(engine) as router:
        async with joined(router) as view:
            router.place = lambda _: InLine()
            placing = asyncio.create_task(view.place(admit("r1")))
            await until(lambda: len(router.asked(Admit)) > 3)
            router.place_on("engine-a", priority=4)

            assert (await placing)[1] == 4


async def test_who_leaves_the_line_is_taken_back() -> None:
    """A client that goes while its request waits leaves nothing at the router."""
    with StandInEngine("engine-a") as engine, SteeredRouter(engine) as router:
        async with joined(router) as view:
            router.place = lambda _: InLine()
            placing = asyncio.create_task(view.place(admit("r1")))
            await until(lambda: router.asked(Admit))
            placing.cancel()
            await until(lambda: router.asked(Cancel) == [Cancel("r1")])

            router.call_up("r1", "engine-a")  # it was called just before
            await until(lambda: router.asked(Cancel) == [Cancel("r1")] * 2)


async def test_without_the_router_those_in_line_go_alone() -> None:
    """A router that dies takes nobody's turn along."""
    with StandInEngine("engine-a") as engine, SteeredRouter(engine) as router:
        async with joined(router) as view:
            router.place = lambda _: InLine()
            placing = [asyncio.create_task(view.place(admit(f"r{n}"))) for n in range(3)]
            await until(lambda: len(router.asked(Admit)) == 3)

            router.is_away = True
            placed = await asyncio.gather(*placing)

        assert [link.card.engine_id for link, _ in placed] == ["engine-a"] * 3
