"""The replica between an engine process and the router, with stand-ins for both."""

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from deployments import engine_process, engine_replica, router_link
from deployments.engine_order import DRAINING, PARTING
from deployments.engine_replica import EngineReplica
from deployments.errors import EngineStalledError, EngineStartError
from deployments.messages import Done, Drain, Join, Leave, Orders, Reply, Report, Request
from kv.node_pools import application_folder, life_of
from ops.metrics.outlet import Outlets
from ops.metrics.plan import PLAIN_PLAN, MetricsPlan
from ops.metrics.push import PushTarget
from scheduler.pressure import FleetPressure
from tests.deployments.stand_ins import (
    ENGINE_PROGRAM,
    HOST,
    PATIENCE_S,
    ROOT,
    StandInHandle,
    StandInRouter,
    until,
)
from tests.ops.metrics.stand_in_pushgateway import stand_in_pushgateway


class OrderingRouter(StandInRouter):
    """Answers joins and reports with ``orders``, once; then with ``lasting``, nothing to do."""

    def __init__(self) -> None:
        self.orders = self.lasting = Orders({})
        super().__init__(self._order)

    def of_kind(self, kind: type[Any]) -> list[Any]:
        return [request for request in self.requests if isinstance(request, kind)]

    def _order(self, request: Request) -> Reply:
        if not isinstance(request, Join | Report):
            return Done()
        orders, self.orders = self.orders, self.lasting
        return orders


@asynccontextmanager
async def started(
    handle: StandInHandle,
    act: str = "work",
    metrics: MetricsPlan = PLAIN_PLAN,
    drain_s: float = 0.0,
) -> AsyncIterator[EngineReplica]:
    replica = new_replica(handle, act, metrics, drain_s)
    try:
        async with asyncio.timeout(PATIENCE_S):
            await replica.start()
        yield replica
    finally:
        await replica.stop()


def new_replica(
    handle: StandInHandle,
    act: str,
    metrics: MetricsPlan = PLAIN_PLAN,
    drain_s: float = 0.0,
) -> EngineReplica:
    environment = {"PYTHONPATH": ROOT}
    return EngineReplica(handle, {"act": act}, environment, 0.002, HOST, metrics, drain_s)


def children() -> list[psutil.Process]:
    return psutil.Process().children(recursive=True)


@pytest.fixture(autouse=True)
def _stand_in_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "MODULE", ENGINE_PROGRAM)
    monkeypatch.setattr(engine_replica, "KNOCK_S", 0.02)
    monkeypatch.setattr(router_link, "PAUSE_S", 0.002)


async def test_an_engine_joins_with_all_it_has_and_then_reports() -> None:
    """First everything, with the card; from then on what has moved, under the same name."""
    with OrderingRouter() as router:
        async with started(StandInHandle(router.endpoint)) as replica:
            await until(lambda: len(router.of_kind(Report)) > 3)
            await replica.check_health()

    [join], reports = router.of_kind(Join), router.of_kind(Report)
    assert join.progress.is_full
    assert not any(report.progress.is_full for report in reports)
    assert {report.engine_id for report in reports} == {join.card.engine_id}
    steps = [report.progress.step for report in reports]
    assert steps == sorted(set(steps))


async def test_priorities_reach_the_engine_once() -> None:
    """What the router orders is set before the next progress is taken, and not again."""
    with OrderingRouter() as router:
        async with started(StandInHandle(router.endpoint)):
            await until(lambda: router.of_kind(Report))
            router.orders = Orders({"r1": -5, "r2": 7})
            num_reports = len(router.requests)
            await until(lambda: len(router.requests) > num_reports + 4)

    set_by_engine = [
        {live.request_id: live.priority for live in report.progress.live}
        for report in router.of_kind(Report)
        if report.progress.live
    ]
    assert set_by_engine == [{"r1": -5, "r2": 7}]


async def test_pins_reach_the_engine_once() -> None:
    """They come as priorities do, and not again."""
    with OrderingRouter() as router:
        async with started(StandInHandle(router.endpoint)):
            await until(lambda: router.of_kind(Report))
            router.orders = Orders({}, pins_s={"r1": 2.0, "r2": 0.0})
            num_reports = len(router.requests)
            await until(lambda: len(router.requests) > num_reports + 4)

    assert sorted(report.progress.switches.pins for report in router.of_kind(Report))[-2:] == [0, 2]


async def test_the_autoscaler_is_told_what_the_router_says_of_the_fleet() -> None:
    """The newest; nothing while there is no router that could know."""
    with OrderingRouter() as router:
        async with started(StandInHandle(router.endpoint)) as replica:
            assert await replica.record_autoscaling_stats() == {}
            router.lasting = Orders({}, pressure=FleetPressure(2.0, 3.0, 0.5))
            told = {"delay_s": 2.0, "switches_per_s": 3.0, "busy_share": 0.5}
            async with asyncio.timeout(PATIENCE_S):
                while await replica.record_autoscaling_stats() != told:
                    await asyncio.sleep(0.002)

            router.close()
            async with asyncio.timeout(PATIENCE_S):
                while await replica.record_autoscaling_stats():
                    await asyncio.sleep(0.002)


async def test_an_engine_that_is_asked_to_join_joins() -> None:
    """A router that has never heard of it, or has forgotten it, gets everything."""
    with OrderingRouter() as router:
        async with started(StandInHandle(router.endpoint)):
            await until(lambda: router.of_kind(Report))
            router.orders = Orders({}, want_join=True)
            await until(lambda: len(router.of_kind(Join)) == 2)

    assert all(join.progress.is_full for join in router.of_kind(Join))


async def test_the_engine_goes_on_without_a_router_and_joins_the_next_one() -> None:
    """A new router gets the newest checkpoint that the old one gave to keep, and all progress."""
    with OrderingRouter() as old, OrderingRouter() as new:
        handle = StandInHandle(old.endpoint)
        async with started(handle) as replica:
            for checkpoint in (b"first", b"newest"):
                old.orders = Orders({}, checkpoint=checkpoint)
                await until(lambda: old.orders.checkpoint is None)
            old.close()
            handle.where = new.endpoint
            await until(lambda: new.of_kind(Report))
            await replica.check_health()

    [join] = new.of_kind(Join)
    assert (join.checkpoint, join.progress.is_full) == (b"newest", True)


async def test_stopping_says_goodbye_and_ends_the_engine() -> None:
    """The router hears that the engine leaves, and no process stays."""
    with OrderingRouter() as router:
        async with started(StandInHandle(router.endpoint)):
            await until(lambda: router.of_kind(Join))
            [engine] = children()
        assert router.requests[-1] == Leave(router.of_kind(Join)[0].card.engine_id)
        assert not engine.is_running()


@pytest.mark.parametrize(
    ("act", "drain_s", "stages"),
    [
        ("work", PATIENCE_S, [DRAINING]),  # it has nothing to finish
        ("finish", PATIENCE_S, [DRAINING]),
        ("cling", 0.01, [DRAINING, PARTING]),
        ("stick", 0.01, [DRAINING, PARTING]),
    ],
)
async def test_stopping_drains_the_engine_and_then_parts_with_the_rest(
    act: str, drain_s: float, stages: list[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The router hears of it first; reports go on, and the end comes within its time."""
    monkeypatch.setattr(engine_replica, "PARTING_S", 0.05)
    with OrderingRouter() as router:
        async with started(StandInHandle(router.endpoint), act, drain_s=drain_s) as replica:
            await until(lambda: len(router.requests) > 3)
            assert replica._process is not None
            log = replica._process._log_tail
        engine_id = replica._engine_id
        [drain] = router.of_kind(Drain)
        assert drain == Drain(engine_id)
        assert router.requests[-1] == Leave(engine_id)
        assert [line for line in log if line.startswith("stage")] == [
            f"stage {stage.hex()}" for stage in stages
        ]
    assert children() == []


async def test_an_engine_that_drains_says_so_to_a_new_router() -> None:
    """Which would place requests there otherwise."""
    with OrderingRouter() as router:
        replica = new_replica(StandInHandle(router.endpoint), "cling", drain_s=PATIENCE_S)
        async with asyncio.timeout(PATIENCE_S):
            await replica.start()
        await until(lambda: router.of_kind(Join))
        stopping = asyncio.create_task(replica.stop())
        await until(lambda: router.of_kind(Drain))
        router.orders = Orders({}, want_join=True)
        await until(lambda: len(router.of_kind(Join)) == 2)
        [engine] = children()
        engine.kill()  # else it would take its time
        await stopping

    assert [join.is_draining for join in router.of_kind(Join)] == [False, True]


async def test_stopping_does_not_need_a_router() -> None:
    """Where none answers, the engine ends all the same."""
    with OrderingRouter() as router:
        handle = StandInHandle(router.endpoint)
        async with started(handle):
            [engine] = children()
            handle.where = None
            router.close()
    assert not engine.is_running()


@pytest.mark.parametrize(
    ("act", "reason"),
    [("refuse", "the model is too large"), ("die_young", "it was too much")],
)
async def test_an_engine_that_does_not_start_fails_the_replica(act: str, reason: str) -> None:
    """With the engine's own reason: before it is ready, or before it gives a sign of life."""
    replica = new_replica(StandInHandle(), act)
    try:
        async with asyncio.timeout(PATIENCE_S):
            with pytest.raises(EngineStartError, match=reason):
                await replica.start()
    finally:
        await replica.stop()


async def test_a_replica_whose_engine_died_is_ill() -> None:
    """Serve then replaces it."""
    with OrderingRouter() as router:
        async with started(StandInHandle(router.endpoint)) as replica:
            await replica.check_health()
            [engine] = children()
            engine.kill()

            with pytest.raises(EngineStartError):
                await _ill(replica.check_health)


@pytest.mark.parametrize("act", ["stick", "wait", "spin", "go_deaf"])
async def test_an_engine_without_progress_is_ill(act: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It no longer steps, or steps with all waiting, or without a token, or no longer answers."""
    monkeypatch.setattr(engine_replica, "STALL_S", 0.1)
    monkeypatch.setattr(engine_replica, "REPLY_S", 0.02)
    monkeypatch.setattr(engine_replica, "PARTING_S", 0.05)
    with OrderingRouter() as router:
        async with started(StandInHandle(router.endpoint), act) as replica:
            with pytest.raises(EngineStalledError, match="has made no progress"):
                await _ill(replica.check_health)


async def test_an_idle_engine_is_healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """With nothing to run, no steps are no stall; the engine's answers are enough."""
    monkeypatch.setattr(engine_replica, "STALL_S", 0.05)
    with OrderingRouter() as router:
        async with started(StandInHandle(router.endpoint)) as replica:
            await until(lambda: len(router.requests) > 50)
            await replica.check_health()


async def _ill(check_health: Callable[[], Any]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while True:
            await check_health()
            await asyncio.sleep(0.002)


async def test_an_engine_is_told_where_host_memory_outlives_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In its application's folder, for as long as the node's raylet lives; else nowhere."""
    monkeypatch.setattr(engine_replica, "application_name", lambda: "shop")
    with_cache = EngineReplica(StandInHandle(), {}, {}, 1.0, HOST, has_node_cache=True)

    folder = Path(with_cache._make_order(HOST).pools_folder)

    assert folder == application_folder(life_of(os.getppid()), "shop")
    assert new_replica(StandInHandle(), "work")._make_order(HOST).pools_folder == ""


async def test_a_replica_pushes_how_its_engine_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under the engine's name; when the replica stops nothing of it is left."""
    monkeypatch.setattr(engine_replica, "application_name", lambda: "fastswitch")
    with stand_in_pushgateway() as gateway, OrderingRouter() as router:
        plan = MetricsPlan(Outlets(PushTarget(gateway.url, every_s=0.005)))
        async with started(StandInHandle(router.endpoint), metrics=plan) as replica:
            pushed = await asyncio.to_thread(gateway.call_with, 'exchange_seconds_bucket{engine="')
            engine_id = replica._engine_id

        assert f'engine="{engine_id}"' in pushed.body
        assert pushed.path.endswith(
            f"/job/engine_replica/application/fastswitch/instance/{engine_id}"
        )
        assert gateway.call_with("", method="DELETE").path == pushed.path
