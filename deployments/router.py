"""Router: the fleet scheduler's process. One per application; no token passes through it.

Owns the one ``FleetScheduler``, what it goes by (some of that may change while it runs), and the
endpoint where gateways ask for placements and engines report. All its state is soft: engines
carry its checkpoint and report everything when they join, so a new router goes on where the old
one stopped.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import msgspec
import zmq.asyncio

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
    Reply,
    Report,
    Request,
    Snapshot,
    ToolsCalled,
    request_decoder,
)
from deployments.node import application_name, new_router_id, node_address
from deployments.spared_snapshot import SparedSnapshot
from deployments.wire import Endpoint, RpcServer
from ops.metrics.outlet import Outlet, process_registry
from ops.metrics.plan import PLAIN_PLAN, MetricsPlan
from ops.metrics.push import Group
from ops.metrics.router_metrics import RouterMetrics
from ops.metrics.stale_groups import StaleGroups
from scheduler.admission import EngineCapacity
from scheduler.errors import NoEngineError, NotFreshError, QuotaExceededError
from scheduler.fleet import FleetCheckpoint, FleetLimits, FleetScheduler
from scheduler.policies.policy import PolicyFactory
from scheduler.pressure import FleetPressure
from scheduler.service import ServiceWeights
from scheduler.shares import TenantShare

logger = logging.getLogger("ray.serve")

GATEWAY_SILENCE_S = 10.0  # gateways say hello every second
ENGINE_SILENCE_S = 30.0  # an engine in one long step is silent, not gone; a dead one says Leave
LOST_SILENCE_S = 2.0  # the same for one that a gateway has lost: both together mean gone
CHECKPOINT_S = 1.0
RESTORE_WITHIN_S = 1.0  # how long a new router waits for an engine that keeps a checkpoint
NUM_KEEPERS = 2  # engines that hold the checkpoint; a router that dies with all starts level
HOUSEKEEPING_S = 1.0


class TenantShares(Protocol):
    """Where tenants' shares come from; ``refresh``, in another thread, reads them again."""

    def refresh(self) -> None: ...

    @property
    def shares(self) -> Mapping[str, TenantShare]: ...

    @property
    def default_share(self) -> TenantShare: ...


@dataclass(frozen=True, slots=True)
class LiveSettings:
    """What a router goes by and may change while it runs."""

    make_policy: PolicyFactory
    service: ServiceWeights
    limits: FleetLimits
    shares: TenantShares


class Router:
    """Answers gateways and engines. The deployment class; all methods run on one event loop."""

    def __init__(
        self,
        new_fleet: Callable[[], FleetScheduler],
        new_shares: Callable[[], TenantShares],
        host: str | None = None,
        clock: Callable[[], float] = time.monotonic,
        metrics: MetricsPlan = PLAIN_PLAN,
        read_live: Callable[[object], LiveSettings] | None = None,
    ) -> None:
        """``read_live`` checks a ``user_config``; without it there is nothing to change."""
        self._read_live = read_live
        self._refused_settings: str | None = None
        self._spared = SparedSnapshot(self._make_snapshot, clock)
        self._pressure: FleetPressure | None = None
        self._fleet = new_fleet()
        self._shares = new_shares()
        self._host = host
        self._applied: tuple[Mapping[str, TenantShare], TenantShare] | None = None
        self._cards: dict[str, EngineCard] = {}
        self._heard_s: dict[str, float] = {}
        self._suspected: set[str] = set()  # engines that a gateway has lost since they reported
        self._checkpoint_due_s: dict[str, float] = {}
        # Who asked, by request; a gateway may have sent it to an engine meanwhile, without us.
        self._askers: dict[str, bytes] = {}
        self._gateways_heard_s: dict[bytes, float] = {}
        self._outlets = metrics.outlets
        self._metrics = RouterMetrics()
        self._outlet: Outlet | None = None
        self._now_s = clock
        self._started_s = clock()
        self._answers: dict[type[Request], Callable[..., Reply]] = {
            Cancel: self._cancel,
            ToolsCalled: self._tools_called,
            Lost: self._lost,
            Ask: self._snapshot,
            Join: self._join,
            Report: self._report,
            Drain: self._drain,
            Leave: self._leave,
        }

    async def start(self) -> None:
        """Open the endpoint and begin to answer."""
        self._apply_shares()
        self._server = RpcServer(
            zmq.asyncio.Context.instance(), self._host or node_address(), self._answer
        )
        self._tasks = [
            asyncio.create_task(self._server.serve(), name="router calls"),
            asyncio.create_task(self._keep_house(), name="router housekeeping"),
        ]
        if self._outlets.is_any:
            self._open_outlet()

    async def reconfigure(self, user_config: object) -> None:
        """Go by these settings from now on. Wrong ones change nothing and are shown.

        Serve calls this at the start and whenever they change. Serve itself is not told what is
        wrong with them: it would put another router, which fails, in the place of this one.
        """
        if self._read_live is None:
            return
        try:
            live = await asyncio.to_thread(self._read_live, user_config)
            self._fleet.go_by(live.make_policy, service=live.service, limits=live.limits)
        except Exception as error:  # noqa: BLE001  (somebody else's policy may raise anything)
            self._refused_settings = f"{error}; the settings before stay in force"
            logger.error("New settings are refused: %s", self._refused_settings)
            return
        self._refused_settings = None
        self._shares = live.shares
        self._apply_shares()
        logger.info("Going by %s", user_config)

    async def stop(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._server.close()
        if self._outlet is not None:
            await asyncio.to_thread(self._outlet.close)

    async def check_health(self) -> None:
        """Serve replaces the router when this raises: a dead task would hang every caller."""
        for task in self._tasks:
            if task.done():
                task.result()

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return self._fleet.num_live == 0

    async def endpoint(self) -> Endpoint:
        """Where to call: asked through Serve, once, by everyone who then talks directly."""
        return self._server.endpoint

    def _answer(self, caller: bytes, payload: bytes) -> Reply:
        request = request_decoder.decode(payload)
        with self._metrics.answering(type(request).__name__.lower()):
            match request:
                case Admit():
                    reply = self._admit(caller, request)
                case Hello():
                    self._gateways_heard_s[caller] = self._now_s()
                    reply = self._directory(request)
                case _:
                    reply = self._answers[type(request)](request)
            self._tell_called()
        return reply

    def _tell_called(self) -> None:
        """Send those who waited in line their places."""
        for request_id, place in self._fleet.take_called().items():
            caller = self._askers.pop(request_id)
            self._server.push(caller, Called(request_id, place.engine_id, place.priority))

    def _admit(self, caller: bytes, request: Admit) -> Reply:
        try:
            placement = self._fleet.admit(request.request, avoid=frozenset(request.avoid))
        except NoEngineError as error:
            return Refused(str(error))
        except QuotaExceededError as error:
            return OverLimit(
                error.tenant, error.limit, error.most, error.wanted, error.retry_after_s
            )
        request_id = request.request.request_id
        if placement is None:
            self._askers[request_id] = caller
            self._gateways_heard_s.setdefault(caller, self._now_s())
            return InLine(self._fleet.keeps_turns)
        self._askers.pop(request_id, None)
        return Placed(placement.engine_id, placement.priority)

    def _cancel(self, request: Cancel) -> Reply:
        self._askers.pop(request.request_id, None)
        self._fleet.cancel(request.request_id)
        return Done()

    def _tools_called(self, request: ToolsCalled) -> Reply:
        self._fleet.tools_called(request.tenant, request.conversation, request.tools)
        return Done()

    def _lost(self, request: Lost) -> Reply:
        # Until it is forgotten, requests would be sent there and those of others kept in line.
        self._suspected.add(request.engine_id)
        return Done()

    def _directory(self, _request: Hello) -> Reply:
        return Directory(list(self._cards.values()))

    def _snapshot(self, _request: Ask) -> Reply:
        return Snapshot(self._spared.read())

    def _make_snapshot(self) -> bytes:
        ours = {
            "refused_settings": self._refused_settings,
            "pressure": msgspec.structs.asdict(self._pressure) if self._pressure else None,
        }
        return msgspec.json.encode({**self._fleet.snapshot(), **ours})

    def _join(self, request: Join) -> Reply:
        card = request.card
        if not self._cards:
            if request.checkpoint is not None:
                self._restore(request.checkpoint)
            elif request.progress.tenant_service and self._is_new():
                # It has worked for another router before: the checkpoint may come with the next.
                return Orders(priorities={}, want_join=True)
        self._cards[card.engine_id] = card
        self._fleet.join(
            card.engine_id,
            EngineCapacity(
                max_num_seqs=card.max_num_seqs,
                blocks_total=card.num_blocks,
                block_tokens=card.block_tokens,
                block_bytes=card.block_bytes,
            ),
        )
        if request.is_draining:
            self._fleet.drain(card.engine_id)
        logger.info("Engine %s joined; the fleet has %d", card.engine_id, len(self._cards))
        return self._take_report(card.engine_id, request)

    def _is_new(self) -> bool:
        return self._now_s() - self._started_s < RESTORE_WITHIN_S

    def _report(self, request: Report) -> Reply:
        if request.engine_id not in self._cards:
            return Orders(priorities={}, want_join=True)
        return self._take_report(request.engine_id, request)

    def _take_report(self, engine_id: str, request: Join | Report) -> Orders:
        now = self._now_s()
        self._heard_s[engine_id] = now
        self._suspected.discard(engine_id)
        self._fleet.on_report(engine_id, request.progress)
        return Orders(
            priorities=self._fleet.priority_changes(engine_id),
            checkpoint=self._checkpoint_for(engine_id, now),
            pins_s=self._fleet.take_pins(engine_id),
            pressure=self._pressure,
        )

    def _checkpoint_for(self, engine_id: str, now: float) -> bytes | None:
        if engine_id not in self._keepers() or now < self._checkpoint_due_s.get(engine_id, 0.0):
            return None
        self._checkpoint_due_s[engine_id] = now + CHECKPOINT_S
        return msgspec.msgpack.encode(self._fleet.checkpoint())

    def _keepers(self) -> list[str]:
        """Those that joined first, each on a node of its own while there are so many."""
        first_of_node: dict[str, str] = {}
        for engine_id, card in self._cards.items():
            first_of_node.setdefault(card.host, engine_id)
        apart = list(first_of_node.values())
        others = [engine_id for engine_id in self._cards if engine_id not in apart]
        return [*apart, *others][:NUM_KEEPERS]

    def _restore(self, checkpoint: bytes) -> None:
        try:
            self._fleet.restore(msgspec.msgpack.decode(checkpoint, type=FleetCheckpoint))
        except (msgspec.DecodeError, NotFreshError) as error:
            logger.warning("The checkpoint is of no use here, starting level: %s", error)
        else:
            logger.warning("Going on from the last router's checkpoint")

    def _drain(self, request: Drain) -> Reply:
        if request.engine_id in self._cards:  # one that is still to join says so as it does
            self._fleet.drain(request.engine_id)
            logger.info("Engine %s drains: it is to go", request.engine_id)
        return Done()

    def _leave(self, request: Leave) -> Reply:
        self._forget(request.engine_id, "said goodbye")
        return Done()

    def _forget(self, engine_id: str, why: str) -> None:
        if self._cards.pop(engine_id, None) is None:
            return
        self._heard_s.pop(engine_id, None)
        self._checkpoint_due_s.pop(engine_id, None)
        lost = self._fleet.leave(engine_id)
        logger.warning("Engine %s %s; %d requests were on it", engine_id, why, len(lost))

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_S)
            # 5,000 tenants take 0.25 s to read: too long for the loop that admits.
            await asyncio.to_thread(self._shares.refresh)
            self._apply_shares()
            now = self._now_s()
            self._forget_silent_engines(now)
            self._drop_silent_gateways(now)
            self._pressure = self._fleet.take_pressure()
            self._metrics.num_engines = len(self._cards)
            self._metrics.num_gateways = len(self._gateways_heard_s)
            self._metrics.num_in_line = self._fleet.num_in_line

    def _open_outlet(self) -> None:
        application, push = application_name(), self._outlets.push
        self._outlet = Outlet(
            process_registry(self._metrics),
            self._outlets,
            Group("router", new_router_id(), application),
            self._host or node_address(),
            # One process per application looks after what crashed ones left: there is one router.
            after_push=StaleGroups(push, application).sweep if push else lambda: None,
        )
        self._outlet.open()

    def _forget_silent_engines(self, now: float) -> None:
        for engine_id, heard_s in list(self._heard_s.items()):
            within_s = LOST_SILENCE_S if engine_id in self._suspected else ENGINE_SILENCE_S
            if now - heard_s > within_s:
                self._forget(engine_id, f"was silent for {now - heard_s:.0f} s")
        self._suspected &= self._heard_s.keys()

    def _drop_silent_gateways(self, now: float) -> None:
        """Nobody would send what waits in line for a gateway that is gone."""
        silent = [
            caller
            for caller, heard_s in self._gateways_heard_s.items()
            if now - heard_s > GATEWAY_SILENCE_S
        ]
        for caller in silent:
            del self._gateways_heard_s[caller]
            for request_id in [name for name, asker in self._askers.items() if asker == caller]:
                del self._askers[request_id]
                self._fleet.cancel_waiting(request_id)

    def _apply_shares(self) -> None:
        shares, default = dict(self._shares.shares), self._shares.default_share
        if (shares, default) != self._applied:
            self._applied = shares, default
            self._fleet.set_tenants(shares, default=default)
