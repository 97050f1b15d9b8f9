"""EngineReplica: keeps one engine process running and in touch with the router.

Owns the engine process: start, regular report of its progress and what the router
orders upon it, health, end.
Leaves what runs next to the router's scheduler and the tokens to engine and gateways, which
talk directly. Without a router the engine goes on with the last priorities it was given.
An engine that is to go drains: it takes nothing new, finishes what it can in ``drain_s``, and then
parts with the rest, which its gateways have go on elsewhere.
The process imports neither torch nor vLLM, so a replica costs little beside its engine.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import zmq
import zmq.asyncio

from deployments import wire
from deployments.autoscaling import as_metrics
from deployments.engine_order import (
    CHANGES,
    DRAINING,
    ECHO,
    EXCHANGE,
    HEARTBEAT,
    PARTING,
    REPLICA_CLIENT,
    STAGE,
    STAGES,
    Changes,
    EngineOrder,
    Exchange,
)
from deployments.engine_process import STOP_S, EngineProcess
from deployments.errors import EngineStalledError, RouterAwayError
from deployments.forward_progress import ForwardProgress
from deployments.messages import Drain, EngineCard, Join, Leave, Orders, Report
from deployments.node import application_name, new_engine_id, node_address, node_life
from deployments.router_link import RouterHandle, RouterLink
from kv.node_pools import application_folder
from ops.metrics.outlet import Outlet, process_registry
from ops.metrics.plan import PLAIN_PLAN, MetricsPlan
from ops.metrics.push import Group
from ops.metrics.replica_metrics import ReplicaMetrics
from scheduler.pressure import FleetPressure
from scheduler.reports import EngineProgress

logger = logging.getLogger("ray.serve")

STALL_S = 60.0  # longer than any step: a large model on a slow CPU takes tens of seconds
REPLY_S = 2.0
KNOCK_S = 0.2
TELL_S = 0.5  # for what the router is to know of an engine's end; it finds out by itself too
PARTING_S = 5.0  # for gateways to have taken away what they can, several heartbeats
# What a replica needs to end beyond ``drain_s``: to part, to say goodbye, to end its process.
GOODBYE_S = PARTING_S + STOP_S + 10.0


class EngineReplica:
    """One engine of the fleet. The deployment class; all methods run on one event loop."""

    def __init__(
        self,
        router: RouterHandle,
        engine_args: Mapping[str, Any],
        engine_env: Mapping[str, str],
        exchange_s: float,
        host: str | None = None,
        metrics: MetricsPlan = PLAIN_PLAN,
        drain_s: float = 0.0,
        *,
        has_node_cache: bool = False,
    ) -> None:
        self._router = RouterLink(router)
        self._engine_args = dict(engine_args)
        self._engine_env = dict(engine_env)
        self._exchange_s = exchange_s
        self._drain_s = drain_s
        self._host = host
        self._plan = metrics
        self._has_node_cache = has_node_cache
        self._engine_id = new_engine_id()
        self._metrics = ReplicaMetrics(self._engine_id)
        self._outlet: Outlet | None = None
        self._checkpoint: bytes | None = None
        self._process: EngineProcess | None = None
        self._line: EngineLine | None = None
        self._life: asyncio.Task[None] | None = None
        self._last_progress_s = time.monotonic()
        self._pressure: FleetPressure | None = None
        self._is_draining = False
        self._num_unfinished = 0  # requests that the engine had at the last exchange

    async def start(self) -> None:
        """Start the engine process and, once it is ready, the exchange.

        Raises:
            EngineStartError: the process ended before it was ready.
        """
        host = self._host or node_address()
        order = self._make_order(host)
        self._process = EngineProcess(order, {**self._engine_env, "VLLM_HOST_IP": host})
        card = await self._process.ready()
        self._line = EngineLine(card)
        await self._line.open(self._process.check_alive)
        await self._router.connect()
        self._last_progress_s = time.monotonic()
        self._life = asyncio.create_task(self._exchange_forever(card, self._line), name="exchange")
        if order.application:
            self._open_outlet(order)

    async def check_health(self) -> None:
        """Forward progress, not just a process. Serve replaces the replica when this raises."""
        if self._process is None:
            return
        self._process.check_alive()
        if self._life is not None and self._life.done():
            self._life.result()
        silent_s = time.monotonic() - self._last_progress_s
        if silent_s > STALL_S:
            raise EngineStalledError(self._process.engine_id, silent_s)

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve's autoscaler is to know of the fleet; nothing while this replica does not."""
        return as_metrics(self._pressure) if self._pressure else {}

    async def stop(self) -> None:
        """Drain, leave the fleet, then end the engine process."""
        if self._line is not None and self._life is not None:
            await self._drain(self._line)
            self._life.cancel()
        if self._process is not None:
            await self._tell(Leave(self._process.engine_id))
            await self._process.stop()
        if self._outlet is not None:
            await asyncio.to_thread(self._outlet.close)
        if self._line is not None:
            self._line.close()
        self._router.close()

    async def _drain(self, line: "EngineLine") -> None:
        """Have the engine's requests end, or go on elsewhere, before it does."""
        self._is_draining = True
        await line.enter_stage(DRAINING)
        await self._tell(Drain(self._engine_id))
        if await self._is_empty_within(self._drain_s):
            return
        logger.info("Engine %s parts with %d requests", self._engine_id, self._num_unfinished)
        await line.enter_stage(PARTING)
        if not await self._is_empty_within(PARTING_S):
            logger.warning("Engine %s ends with %d", self._engine_id, self._num_unfinished)

    async def _is_empty_within(self, within_s: float) -> bool:
        deadline_s = time.monotonic() + within_s
        while self._num_unfinished and self._is_working:
            if time.monotonic() >= deadline_s:
                return False
            await asyncio.sleep(self._exchange_s)
        return True

    @property
    def is_idle(self) -> bool:
        """Whether the engine has nothing to do."""
        return self._num_unfinished == 0

    @property
    def _is_working(self) -> bool:
        assert self._process is not None
        assert self._life is not None
        return self._process.is_alive and not self._life.done()

    async def _tell(self, message: Drain | Leave) -> None:
        with contextlib.suppress(RouterAwayError):
            await self._router.call(message, timeout_s=TELL_S)

    def _make_order(self, host: str) -> EngineOrder:
        outlets = self._plan.outlets
        return EngineOrder(
            self._engine_id,
            host,
            self._engine_args,
            outlets=outlets,
            application=application_name() if outlets.is_any else "",
            # Outlet or not: gateways time requests by what an engine that counts tells with them.
            has_vllm_metrics=self._plan.has_vllm,
            pools_folder=self._pools_folder(),
        )

    def _pools_folder(self) -> str:
        if not self._has_node_cache:
            return ""
        return str(application_folder(node_life(), application_name()))

    def _open_outlet(self, order: EngineOrder) -> None:
        registry = process_registry(self._metrics)
        group = Group("engine_replica", order.engine_id, order.application)
        self._outlet = Outlet(registry, order.outlets, group, order.host)
        self._outlet.open()

    async def _exchange_forever(self, card: EngineCard, line: "EngineLine") -> None:
        want_join = True
        forward = ForwardProgress()
        while True:
            asked_s = time.monotonic()
            try:
                progress = await line.exchange(is_full=want_join)
            except TimeoutError:
                continue  # a long step; check_health decides when it is too long
            self._metrics.exchanged(time.monotonic() - asked_s)
            self._num_unfinished = progress.num_running + progress.num_waiting
            if forward.note(progress):
                self._last_progress_s = time.monotonic()
                self._metrics.progressed()
            orders = await self._report(card, progress, want_join=want_join)
            # At once: with the next exchange, ranks would be as old as the time between two.
            await line.change(orders)
            want_join, self._pressure = orders.want_join, orders.pressure
            await asyncio.sleep(self._exchange_s)

    async def _report(
        self, card: EngineCard, progress: EngineProgress, *, want_join: bool
    ) -> Orders:
        message = (
            Join(card, progress, self._checkpoint, self._is_draining)
            if want_join
            else Report(card.engine_id, progress)
        )
        try:
            orders = await self._router.call(message, timeout_s=REPLY_S)
        except RouterAwayError:
            self._metrics.router_missed()
            # Whoever answers next may never have heard of us.
            return Orders(priorities={}, want_join=True)
        assert isinstance(orders, Orders)
        if orders.checkpoint is not None:
            self._checkpoint = orders.checkpoint
        return orders


class EngineLine:
    """The replica's own connection to its engine process."""

    def __init__(self, card: EngineCard) -> None:
        context = zmq.asyncio.Context.instance()
        self._input = wire.connect(
            context,
            zmq.PUSH,
            wire.Endpoint(card.input_address, card.public_key),
            is_same_machine=True,
        )
        self._output = wire.connect(
            context,
            zmq.DEALER,
            wire.Endpoint(card.output_address, card.public_key),
            identity=wire.client_identity(REPLICA_CLIENT),
            is_same_machine=True,
        )
        self._decode = msgspec.msgpack.Decoder(EngineProgress).decode
        self._unanswered = False

    async def open(self, check_alive: Callable[[], None]) -> None:
        """Returns once both ways are proven to work; raises what ``check_alive`` raises."""
        while True:
            check_alive()
            await self._input.send_multipart([HEARTBEAT, REPLICA_CLIENT.to_bytes(8, "little")])
            try:
                async with asyncio.timeout(KNOCK_S):
                    await self._output.recv_multipart()
                return
            except TimeoutError:
                continue

    def close(self) -> None:
        self._input.close()
        self._output.close()

    async def enter_stage(self, stage: bytes) -> None:
        """Have the engine tell its clients that it is at this stage of its way out."""
        await self._input.send_multipart([STAGE, stage])

    async def change(self, orders: Orders) -> None:
        """Hand on the priorities and pins that the router ordered."""
        changes = Changes(orders.priorities, orders.pins_s)
        await self._input.send_multipart([CHANGES, msgspec.msgpack.encode(changes)])

    async def exchange(self, *, is_full: bool) -> EngineProgress:
        """Fetch the progress since the last exchange, or all of it.

        Raises:
            TimeoutError: no answer yet. The next call goes on waiting for it.
        """
        if not self._unanswered:
            message = Exchange(REPLICA_CLIENT, is_full)
            await self._input.send_multipart([EXCHANGE, msgspec.msgpack.encode(message)])
            self._unanswered = True
        async with asyncio.timeout(REPLY_S):
            payload = ECHO
            while payload in STAGES:
                [payload] = await self._output.recv_multipart()
        self._unanswered = False
        return self._decode(payload)
