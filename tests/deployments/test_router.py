"""The router: its answers to gateways and engines, whom it forgets, and its life after a death."""

import asyncio
import json
import logging
import math
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from functools import partial
from random import Random
from typing import Any

import msgspec
import pytest
import zmq.asyncio

from deployments import router as router_module
from deployments import spared_snapshot
from deployments.messages import (
    Admit,
    Ask,
    Called,
    Cancel,
    Directory,
    Done,
    Drain,
    EngineCard,
    Hello,
    InLine,
    Join,
    Leave,
    Lost,
    Orders,
    OverLimit,
    Placed,
    Refused,
    Report,
    Request,
    Snapshot,
    ToolsCalled,
)
from deployments.router import (
    CHECKPOINT_S,
    ENGINE_SILENCE_S,
    GATEWAY_SILENCE_S,
    LOST_SILENCE_S,
    LiveSettings,
    Router,
)
from deployments.wire import RpcClient
from ops.metrics.outlet import Outlets
from ops.metrics.plan import PLAIN_PLAN, MetricsPlan
from ops.metrics.push import PushTarget
from scheduler.admission import AdmitRequest
from scheduler.fleet import FleetCheckpoint, FleetLimits, FleetScheduler
from scheduler.policies.fcfs import FirstComeFirstServed
from scheduler.policies.numbering import MIDDLE
from scheduler.policies.vtc import VirtualTokenCounter
from scheduler.pressure import FleetPressure
from scheduler.reports import EngineProgress, FinishedRequest, LiveRequest, SwitchCounts
from scheduler.service import ServiceWeights
from scheduler.shares import TenantShare
from tests.deployments.stand_ins import HOST, PATIENCE_S, until
from tests.ops.metrics.stand_in_pushgateway import stand_in_pushgateway

Call = Callable[[Request], Awaitable[Any]]


class HeldClock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Shares:
    """Tenants' weights that a test edits; they are in force when the router looks again."""

    def __init__(self, **weights: float) -> None:
        self.edited: dict[str, float] = weights
        self.edited_default = 1.0
        self.limited: dict[str, TenantShare] = {}
        self.shares: Mapping[str, TenantShare]
        self.default_share: TenantShare
        Shares.refresh(self)

    def refresh(self) -> None:
        weighted = {tenant: TenantShare(weight) for tenant, weight in self.edited.items()}
        self.shares = {**weighted, **self.limited}
        self.default_share = TenantShare(self.edited_default)


def new_fleet(clock: HeldClock, *, max_tool_ttl_s: float = 30.0) -> FleetScheduler:
    return FleetScheduler(
        partial(VirtualTokenCounter, quantum=0.0),
        clock=clock,
        random=Random(0),
        service=ServiceWeights(),
        limits=FleetLimits(update_s=0.0, max_tool_ttl_s=max_tool_ttl_s),
    )


class RouterLine:
    """A router and the way to call it."""

    def __init__(self, router: Router, client: RpcClient) -> None:
        self.router, self._client = router, client

    async def __call__(self, request: Request) -> Any:
        return await self._client.call(request, timeout_s=PATIENCE_S)


@asynccontextmanager
async def running(
    clock: HeldClock,
    shares: Shares | None = None,
    on_push: Callable[[msgspec.Struct], None] = lambda _: None,
    metrics: MetricsPlan = PLAIN_PLAN,
    read_live: Callable[[Any], LiveSettings] | None = None,
) -> AsyncIterator[RouterLine]:
    """A router on loopback; yields the way to call it."""
    router = Router(
        partial(new_fleet, clock), lambda: shares or Shares(), HOST, clock, metrics, read_live
    )
    await router.start()
    try:
        context = zmq.asyncio.Context.instance()
        with closing(RpcClient(context, await router.endpoint(), on_push)) as client:
            yield RouterLine(router, client)
            await router.check_health()
    finally:
        await router.stop()


@pytest.fixture
def clock() -> HeldClock:
    return HeldClock()


@pytest.fixture(autouse=True)
def _keep_house_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """The router looks after its house every few milliseconds of real time; time itself is held."""
    monkeypatch.setattr(router_module, "HOUSEKEEPING_S", 0.002)
    monkeypatch.setattr(spared_snapshot, "MAX_CORE_SHARE", math.inf)  # every look is a new one


def card(engine_id: str) -> EngineCard:
    return EngineCard(
        engine_id=engine_id,
        input_address="tcp://127.0.0.1:1",
        output_address="tcp://127.0.0.1:2",
        public_key="key",
        ready=b"ready",
        max_num_seqs=8,
        num_blocks=1000,
        block_tokens=16,
    )


def progress(step: int = 1, **changes: Any) -> EngineProgress:
    nothing = EngineProgress(
        step=step,
        is_full=False,
        live=[],
        finished=[],
        num_running=0,
        num_waiting=0,
        blocks_used=0,
        blocks_total=100,
        host_blocks_used=0,
        host_blocks_total=0,
        switches=SwitchCounts(),
    )
    return msgspec.structs.replace(nothing, **changes)


def full(step: int = 1, **changes: Any) -> EngineProgress:
    return progress(step, is_full=True, **changes)


def live(request_id: str, tenant: str, done: tuple[int, int], *, priority: int = 0) -> LiveRequest:
    return LiveRequest(
        request_id=request_id,
        tenant=tenant,
        conversation=None,
        arrival_s=0.0,
        prompt_tokens=100,
        prompt_done=done[0],
        output_done=done[1],
        priority=priority,
        is_running=True,
    )


def admit(request_id: str, tenant: str = "acme", avoid: Sequence[str] = ()) -> Admit:
    return Admit(AdmitRequest(request_id, tenant, None, 100, 100, 0.0), list(avoid))


async def tenants(call: Call) -> dict[str, Any]:
    return (await snapshot(call))["tenants"]


async def weights(call: Call) -> dict[str, float]:
    return {name: tenant["weight"] for name, tenant in (await tenants(call)).items()}


async def snapshot(call: Call) -> dict[str, Any]:
    answer = await call(Ask())
    assert isinstance(answer, Snapshot)
    return json.loads(answer.body)


async def test_a_request_is_placed_on_an_engine_that_joined(clock: HeldClock) -> None:
    """With nobody there it is refused and told why; then it goes to whoever is."""
    async with running(clock) as call:
        assert isinstance(await call(admit("r1")), Refused)

        await call(Join(card("engine-a"), full()))
        placed = await call(admit("r1"))
        assert isinstance(placed, Placed)
        assert placed.engine_id == "engine-a"


async def test_an_engine_to_be_avoided_is_avoided(clock: HeldClock) -> None:
    """A gateway that cannot reach an engine gets another one, or none at all."""
    async with running(clock) as call:
        for engine_id in ("engine-a", "engine-b"):
            await call(Join(card(engine_id), full()))

        elsewhere = await call(admit("r1", avoid=["engine-a"]))
        nowhere = await call(admit("r1", avoid=["engine-a", "engine-b"]))
        assert elsewhere.engine_id == "engine-b"
        assert isinstance(nowhere, Refused)
        assert "2 to be avoided" in nowhere.reason


SEATS_AND_PLACES = 10  # of an engine with eight seats


async def test_past_an_engines_places_requests_wait_until_they_are_called(
    clock: HeldClock,
) -> None:
    """In line first; then, as the engine's report shows room, told of their place unasked."""
    pushes: list[msgspec.Struct] = []
    async with running(clock, on_push=pushes.append) as call:
        await call(Join(card("engine-a"), full()))
        for number in range(SEATS_AND_PLACES):
            assert isinstance(await call(admit(f"r{number}")), Placed)
        assert [await call(admit(name)) for name in ("x", "y")] == [InLine(in_turn=True)] * 2
        assert (await snapshot(call))["totals"]["in_line"] == 2

        ended = FinishedRequest("r0", "acme", 100, 100, 5, "stop")
        await call(Report("engine-a", progress(2, finished=[ended])))

        await until(lambda: pushes)
        assert pushes == [Called("x", "engine-a", 2 * MIDDLE + 1)]
        assert (await snapshot(call))["totals"]["in_line"] == 1


async def test_what_waits_for_a_gateway_that_is_gone_is_dropped(clock: HeldClock) -> None:
    """A gateway that says hello keeps its requests in line; one that is silent loses them."""
    async with running(clock) as call:
        await call(Join(card("engine-a"), full()))
        for number in range(SEATS_AND_PLACES + 1):
            await call(admit(f"r{number}"))
        for _ in range(3):
            clock.now_s += GATEWAY_SILENCE_S - 1
            await call(Hello(7))
            await call(Report("engine-a", progress()))
        assert (await snapshot(call))["totals"]["in_line"] == 1

        clock.now_s += GATEWAY_SILENCE_S + 1
        async with asyncio.timeout(PATIENCE_S):
            while (await snapshot(call))["totals"]["in_line"]:
                await asyncio.sleep(0.002)


async def test_what_a_gateway_sent_by_itself_outlives_its_place_in_line(clock: HeldClock) -> None:
    """It gave the router up and is another caller since: what it had in line runs on an engine."""
    async with running(clock) as call:
        await call(Join(card("engine-a"), full()))
        for number in range(SEATS_AND_PLACES + 2):
            await call(admit(f"r{number}"))
        sent = f"r{SEATS_AND_PLACES}"  # one more waits behind it, and goes with its gateway
        await call(Report("engine-a", progress(2, live=[live(sent, "acme", (100, 1))])))
        assert (await snapshot(call))["totals"]["in_line"] == 1

        clock.now_s += GATEWAY_SILENCE_S + 1
        async with asyncio.timeout(PATIENCE_S):
            while (await snapshot(call))["totals"]["in_line"]:
                await asyncio.sleep(0.002)

        totals = (await snapshot(call))["totals"]
        assert (totals["live"], totals["running"]) == (SEATS_AND_PLACES + 1, 1)


async def test_a_turn_that_called_a_tool_is_pinned_by_its_engine(clock: HeldClock) -> None:
    """With its next report the engine that served it is told for how long, once."""
    request = AdmitRequest("r1", "acme", "a conversation", 100, 100, 0.0)
    async with running(clock) as call:
        orders = await call(Join(card("engine-a"), full()))
        assert orders.pins_s == {}
        await call(Admit(request))

        assert await call(ToolsCalled("acme", "a conversation", ["search"])) == Done()

        [(request_id, ttl_s)] = (await call(Report("engine-a", progress(2)))).pins_s.items()
        assert (request_id, 0 < ttl_s <= 30.0) == ("r1", True)
        assert (await call(Report("engine-a", progress(3)))).pins_s == {}


async def test_calls_in_conversations_unheard_of_do_no_harm(clock: HeldClock) -> None:
    """A router that has just started, or has forgotten, answers all the same."""
    async with running(clock) as call:
        await call(Join(card("engine-a"), full()))

        assert await call(ToolsCalled("acme", "another", ["search"])) == Done()


async def test_a_cancelled_request_is_forgotten(clock: HeldClock) -> None:
    """It counts for its tenant until then; taking back twice, or what never was, does no harm."""
    async with running(clock) as call:
        await call(Join(card("engine-a"), full()))
        await call(admit("r1"))
        assert (await tenants(call))["acme"]["live"] == 1

        assert [await call(Cancel(name)) for name in ("r1", "r1", "never")] == [Done()] * 3
        assert (await snapshot(call))["totals"]["live"] == 0


async def test_a_tenant_past_its_own_limit_is_refused(clock: HeldClock) -> None:
    """With what a gateway has to tell its client; the others are placed."""
    shares = Shares()
    shares.limited = {"acme": TenantShare(max_concurrent=1)}
    shares.refresh()
    async with running(clock, shares) as call:
        await call(Join(card("engine-a"), full()))
        await call(admit("r1"))

        assert await call(admit("r2")) == OverLimit("acme", "max_concurrent", 1, 1, 1.0)
        assert isinstance(await call(admit("r3", "other")), Placed)
        standing = await tenants(call)
        assert (standing["acme"]["rejected"], standing["acme"]["max_concurrent"]) == (1, 1)


async def test_a_gateways_hello_is_answered_with_the_engines(clock: HeldClock) -> None:
    """The directory is the cards as the engines gave them, and follows their coming and going."""
    async with running(clock) as call:
        assert await call(Hello(7)) == Directory([])
        await call(Join(card("engine-a"), full()))
        await call(Join(card("engine-b"), full()))
        assert await call(Hello(7)) == Directory([card("engine-a"), card("engine-b")])

        assert await call(Leave("engine-a")) == Done()
        assert await call(Hello(7)) == Directory([card("engine-b")])


async def test_an_engine_that_leaves_takes_its_requests_along(clock: HeldClock) -> None:
    """What was on it is no longer live; an engine nobody knows may leave too."""
    async with running(clock) as call:
        await call(Join(card("engine-a"), full()))
        await call(admit("r1"))
        await call(Leave("engine-a"))
        await call(Leave("engine-a"))

        assert (await snapshot(call))["totals"]["live"] == 0


@pytest.mark.parametrize("tells_first", [True, False])
async def test_an_engine_that_drains_gets_nothing_new(
    clock: HeldClock,
    tells_first: bool,  # noqa: FBT001
) -> None:
    """Whether it said so to this router or joins it on its way out."""
    async with running(clock) as call:
        await call(Join(card("engine-a"), full(), is_draining=not tells_first))
        await call(Join(card("engine-b"), full()))
        if tells_first:
            assert await call(Drain("engine-a")) == Done()

        placed = [(await call(admit(f"r{i}"))).engine_id for i in range(6)]
        assert set(placed) == {"engine-b"}
        engines = (await snapshot(call))["engines"]
        assert {name for name, engine in engines.items() if engine["draining"]} == {"engine-a"}


async def test_an_engine_that_nobody_knows_may_drain(clock: HeldClock) -> None:
    """It will say so again when it joins."""
    async with running(clock) as call:
        assert await call(Drain("engine-a")) == Done()


async def test_an_engine_that_is_not_known_is_asked_to_join(clock: HeldClock) -> None:
    """Its report changes nothing, and its orders say that it shall join."""
    async with running(clock) as call:
        orders = await call(Report("engine-a", progress(live=[live("r1", "acme", (10, 0))])))

        assert orders == Orders(priorities={}, want_join=True)
        assert (await snapshot(call))["totals"]["live"] == 0


async def test_a_report_is_answered_with_changed_priorities_only(clock: HeldClock) -> None:
    """Who has had less becomes more urgent; what the engine knows already is not repeated."""
    async with running(clock) as call:
        await call(Join(card("engine-a"), full()))
        for request_id, tenant in (("r1", "greedy"), ("r2", "modest")):
            await call(admit(request_id, tenant))
        seen = [live("r1", "greedy", (100, 90)), live("r2", "modest", (100, 1))]
        clock.now_s += 1.0
        orders = await call(Report("engine-a", progress(2, live=seen)))
        told = {one.request_id: orders.priorities.get(one.request_id, 0) for one in seen}
        assert told["r2"] < told["r1"]

        taken_up = [msgspec.structs.replace(one, priority=told[one.request_id]) for one in seen]
        clock.now_s += 1.0
        again = await call(Report("engine-a", progress(3, live=taken_up)))
        assert again.priorities == {}


async def test_a_snapshot_serves_again_while_a_new_one_would_cost_too_much(
    clock: HeldClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever asks, through whichever gateway: admitting comes first."""
    monkeypatch.setattr(spared_snapshot, "MAX_CORE_SHARE", 1e-3)
    async with running(clock) as call:
        before = await snapshot(call)
        await call(Join(card("engine-a"), full()))
        assert await snapshot(call) == before

        clock.now_s += 20.0
        assert (await snapshot(call))["engines"].keys() == {"engine-a"}


async def test_service_is_charged_as_engines_report_it(clock: HeldClock) -> None:
    """A tenant's service is its prompt tokens once and its output tokens twice."""
    async with running(clock) as call:
        await call(Join(card("engine-a"), full()))
        await call(admit("r1"))
        await call(Report("engine-a", progress(2, live=[live("r1", "acme", (100, 5))])))
        finished = FinishedRequest("r1", "acme", 100, 100, 7, "stop")
        await call(Report("engine-a", progress(3, finished=[finished])))

        acme = (await tenants(call))["acme"]
        assert (acme["service"], acme["live"]) == (100 + 2 * 7, 0)


async def test_weights_change_while_the_router_runs(clock: HeldClock) -> None:
    """An edit of the tenants is in force without a restart, for tenants old and new."""
    shares = Shares(acme=1.0)
    async with running(clock, shares) as call:
        assert (await tenants(call))["acme"]["weight"] == 1.0

        await call(Join(card("engine-a"), progress(1, is_full=True)))
        await call(admit("r1", "somebody"))
        shares.edited = {"acme": 3.0, "late": 2.0}
        shares.edited_default = 5.0
        in_force = {"acme": 3.0, "late": 2.0, "somebody": 5.0}
        async with asyncio.timeout(PATIENCE_S):
            while await weights(call) != in_force:
                pass


async def test_requests_are_admitted_while_the_tenants_are_read(clock: HeldClock) -> None:
    """Reading a long file holds up nobody; what it says is in force once it is read."""

    class SlowShares(Shares):
        def __init__(self, **weights: float) -> None:
            self.is_reading, self.has_admitted = threading.Event(), threading.Event()
            self.in_time: list[bool] = []
            super().__init__(**weights)

        def refresh(self) -> None:
            self.is_reading.set()
            self.in_time.append(self.has_admitted.wait(PATIENCE_S))
            super().refresh()

    shares = SlowShares(acme=1.0)
    async with running(clock, shares) as call:
        shares.edited = {"acme": 3.0}
        await until(shares.is_reading.is_set)
        await call(Join(card("engine-a"), full()))
        await call(admit("r1"))
        shares.has_admitted.set()
        async with asyncio.timeout(PATIENCE_S):
            while await weights(call) != {"acme": 3.0}:
                pass
        assert all(shares.in_time)


def read_live(user_config: Any) -> LiveSettings:
    """What a test says: a policy, tenants' weights, or an error."""
    if "error" in user_config:
        raise ValueError(user_config["error"])
    return LiveSettings(
        user_config.get("policy", FirstComeFirstServed),
        ServiceWeights(),
        FleetLimits(update_s=0.0),
        Shares(**user_config.get("weights", {})),
    )


async def test_settings_change_while_the_router_runs(clock: HeldClock) -> None:
    """Policy and weights are new, and every request and engine is where it was."""
    async with running(clock, read_live=read_live) as call:
        await call(Join(card("engine-a"), full()))
        await call(admit("r1"))
        before = await snapshot(call)

        await call.router.reconfigure({"weights": {"acme": 3.0}})

        after = await snapshot(call)
        assert (before["policy"], after["policy"]) == ("vtc", "fcfs")
        assert (before["refused_settings"], after["refused_settings"]) == (None, None)
        assert after["tenants"]["acme"]["weight"] == 3.0
        assert after["engines"] == before["engines"]
        assert after["totals"] == before["totals"]


async def test_wrong_settings_change_nothing_and_are_shown(clock: HeldClock) -> None:
    """Until right ones come. Serve hears of no error: it would end the router that serves."""
    async with running(clock, read_live=read_live) as call:
        await call.router.reconfigure({"weights": {"acme": 3.0}})

        await call.router.reconfigure({"error": "there is no such policy"})

        shown = await snapshot(call)
        assert shown["refused_settings"].startswith("there is no such policy; ")
        assert (shown["policy"], shown["tenants"]["acme"]["weight"]) == ("fcfs", 3.0)
        await call.router.reconfigure({})
        assert (await snapshot(call))["refused_settings"] is None


async def test_engines_are_told_how_hard_the_fleet_is_pressed(clock: HeldClock) -> None:
    """With their orders, for the autoscaler; people see it too."""
    async with running(clock) as call:
        await call(Join(card("engine-a"), full()))
        await call(admit("r1"))
        clock.now_s += 4.0

        pressed = FleetPressure(delay_s=4.0, busy_share=1 / 8)
        async with asyncio.timeout(PATIENCE_S):
            while (await call(Report("engine-a", progress()))).pressure != pressed:
                await asyncio.sleep(0.002)

        assert (await snapshot(call))["pressure"] == msgspec.structs.asdict(pressed)


async def test_only_the_keepers_get_the_checkpoint(clock: HeldClock) -> None:
    """Two engines get it, each once a second; the next in line steps in for one that leaves."""
    names = ["engine-a", "engine-b", "engine-c"]

    async with running(clock) as call:

        async def report(step: int) -> list[str]:
            orders = {name: await call(Report(name, progress(step))) for name in names}
            return [name for name, order in orders.items() if order.checkpoint is not None]

        joined = [await call(Join(card(name), full())) for name in names]
        assert [order.checkpoint is not None for order in joined] == [True, True, False]
        clock.now_s += CHECKPOINT_S / 2
        assert await report(2) == []
        clock.now_s += CHECKPOINT_S / 2
        assert await report(3) == ["engine-a", "engine-b"]
        assert await report(4) == []

        await call(Leave(names.pop(0)))
        assert await report(5) == ["engine-c"]


async def test_the_keepers_are_on_different_nodes(clock: HeldClock) -> None:
    """No machine takes the checkpoint along that dies with the router on it."""
    hosts = {"engine-a": "10.0.0.1", "engine-b": "10.0.0.1", "engine-c": "10.0.0.2"}

    async with running(clock) as call:
        for name, host in hosts.items():
            address = f"tcp://{host}:5000"
            await call(Join(msgspec.structs.replace(card(name), input_address=address), full()))
        clock.now_s += CHECKPOINT_S
        orders = {name: await call(Report(name, progress(2))) for name in hosts}
        kept = [name for name, order in orders.items() if order.checkpoint is not None]
        assert kept == ["engine-a", "engine-c"]


async def test_a_new_router_goes_on_with_the_counters(clock: HeldClock) -> None:
    """From the checkpoint and a full report: live requests, service, and nobody's lead is lost."""
    async with running(clock) as call:
        await call(Join(card("engine-a"), full()))
        for request_id, tenant in (("r1", "greedy"), ("r2", "modest")):
            await call(admit(request_id, tenant))
        seen = [live("r1", "greedy", (100, 90)), live("r2", "modest", (100, 1))]
        clock.now_s += CHECKPOINT_S
        orders = await call(Report("engine-a", progress(2, live=seen)))
        before = await tenants(call)

    seen = [live("r1", "greedy", (100, 95)), live("r2", "modest", (100, 6))]
    service = {"greedy": (100, 95), "modest": (100, 6)}
    report = full(9, live=seen, tenant_service=service)
    async with running(clock) as call:
        await call(Join(card("engine-a"), report, orders.checkpoint))
        after = await tenants(call)

    for tenant in ("greedy", "modest"):
        assert after[tenant]["counter"] == before[tenant]["counter"] + 2 * 5
        assert after[tenant]["service"] == before[tenant]["service"] + 2 * 5
        assert after[tenant]["live"] == 1
    assert after["modest"]["rank"] < after["greedy"]["rank"]


@pytest.mark.parametrize("order", [["keeper", "other"], ["other", "keeper"]])
async def test_any_keeper_brings_the_counters_back(clock: HeldClock, order: list[str]) -> None:
    """Whichever engine finds the new router first: engines without a checkpoint join again."""
    async with running(clock) as call:
        await call(Join(card("keeper"), full()))
        await call(admit("r1", "greedy"))
        clock.now_s += CHECKPOINT_S
        seen = [live("r1", "greedy", (100, 90))]
        orders = await call(Report("keeper", progress(2, live=seen)))
        before = (await tenants(call))["greedy"]

    joins = {
        "keeper": Join(
            card("keeper"),
            full(3, live=seen, tenant_service={"greedy": (100, 90)}),
            orders.checkpoint,
        ),
        "other": Join(card("other"), full(3, tenant_service={"modest": (10, 10)})),
    }
    async with running(clock) as call:
        answers = {name: await call(joins[name]) for name in order}
        for name, answer in answers.items():
            if answer.want_join:
                await call(joins[name])
        after = await tenants(call)
        engines = (await snapshot(call))["engines"]

    assert after["greedy"]["counter"] == before["counter"]
    assert engines.keys() == {"keeper", "other"}


async def test_engines_without_a_checkpoint_are_not_kept_out_for_ever(clock: HeldClock) -> None:
    """Where no keeper is left, the fleet starts level after a moment."""
    worked = full(3, tenant_service={"acme": (10, 10)})
    async with running(clock) as call:
        await call(Join(card("engine-a"), worked))
        clock.now_s += 10.0
        await call(Join(card("engine-a"), worked))

        assert isinstance(await call(admit("r1")), Placed)


def _with_a_broken_policy_state(checkpoint: FleetCheckpoint) -> bytes:
    return msgspec.msgpack.encode(msgspec.structs.replace(checkpoint, policy_state=b"\xc1"))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda _: b"",
        lambda _: b"\xc1 is no msgpack",
        lambda _: msgspec.msgpack.encode(["another", "layout"]),
        lambda checkpoint: msgspec.msgpack.encode(checkpoint)[:-3],
        _with_a_broken_policy_state,
    ],
    ids=["empty", "not msgpack", "another layout", "cut off", "broken policy state"],
)
async def test_a_broken_checkpoint_is_put_aside(
    clock: HeldClock,
    caplog: pytest.LogCaptureFixture,
    spoil: Callable[[FleetCheckpoint], bytes],
) -> None:
    """The fleet starts level with a warning; the engine that brought it is in all the same."""
    good = new_fleet(clock).checkpoint()
    async with running(clock) as call:
        with caplog.at_level(logging.WARNING, logger="ray.serve"):
            orders = await call(Join(card("engine-a"), full(), spoil(good)))

        assert isinstance(orders, Orders)
        assert "starting level" in caplog.text
        assert isinstance(await call(admit("r1")), Placed)


async def test_a_silent_engine_is_forgotten(clock: HeldClock) -> None:
    """It leaves the directory with its requests; one that still reports stays."""
    async with running(clock) as call:
        await call(Join(card("engine-a"), full()))
        await call(Join(card("engine-b"), full()))
        await call(admit("r1", avoid=["engine-b"]))
        clock.now_s += ENGINE_SILENCE_S
        await call(Report("engine-b", progress(2)))
        clock.now_s += 1.0

        directory = await call(Hello(7))
        while directory != Directory([card("engine-b")]):
            directory = await call(Hello(7))
        assert (await snapshot(call))["totals"]["live"] == 0
        assert (await call(Report("engine-a", progress(2)))).want_join


async def test_an_engine_that_a_gateway_has_lost_is_soon_forgotten(clock: HeldClock) -> None:
    """Unless it has reported since: then only that gateway's line broke."""
    async with running(clock) as call:
        for name in ("engine-a", "engine-b"):
            await call(Join(card(name), full()))
            await call(Lost(name))
        assert await call(Lost("an engine nobody knows")) == Done()
        await call(Report("engine-b", progress(2)))
        clock.now_s += LOST_SILENCE_S + 1.0

        directory = await call(Hello(7))
        while directory != Directory([card("engine-b")]):
            assert card("engine-b") in directory.engines
            directory = await call(Hello(7))


async def test_a_router_that_cannot_keep_house_is_ill(clock: HeldClock) -> None:
    """A background task that died shows in the health check, with its own reason."""

    class BrokenShares(Shares):
        is_broken = False

        def refresh(self) -> None:
            if self.is_broken:
                raise OSError("the tenants are gone")
            super().refresh()

    shares = BrokenShares()
    router = Router(partial(new_fleet, clock), lambda: shares, HOST, clock=clock)
    await router.start()
    try:
        await router.check_health()
        shares.is_broken = True
        with pytest.raises(OSError, match="the tenants are gone"):
            await asyncio.wait_for(_ill(router), PATIENCE_S)
    finally:
        await router.stop()


async def _ill(router: Router) -> None:
    while True:
        await router.check_health()
        await asyncio.sleep(0)


async def test_the_router_pushes_what_it_is_asked(
    clock: HeldClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its calls are pushed under its own name while it lives, and taken back when it stops."""
    monkeypatch.setattr(router_module, "application_name", lambda: "fastswitch")
    with stand_in_pushgateway() as gateway:
        plan = MetricsPlan(Outlets(PushTarget(gateway.url, every_s=0.005)))
        async with running(clock, metrics=plan) as call:
            await call(Hello(client_index=1))
            pushed = await asyncio.to_thread(
                gateway.call_with, 'fastswitch_router_calls_total{call="hello"} 1.0'
            )

        assert pushed.path.startswith("/metrics/job/router/application/fastswitch/instance/router-")
        assert gateway.call_with("", method="DELETE").path == pushed.path
