"""A small fleet under load, in this process: real collectors, and numbers that move by themselves.

A fleet scheduler is told of two engines that serve and switch, a gateway's requests begin and
end, and router and replica count their work. Only vLLM's own two are stand-ins; their names are
pinned by vLLM's contract test.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from random import Random
from threading import Event, Thread
from time import monotonic
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, Counter, start_http_server

from ops.metrics.fleet_collector import FleetCollector
from ops.metrics.outlet import process_registry
from ops.metrics.push import Group, Pace, Pusher, PushTarget
from ops.metrics.replica_metrics import ReplicaMetrics
from ops.metrics.request_metrics import RequestMetrics
from ops.metrics.router_metrics import RouterMetrics
from ops.metrics.stale_groups import StaleGroups
from ops.metrics.tenant_labels import TenantLabels
from scheduler.admission import AdmitRequest, EngineCapacity
from scheduler.fleet import FleetLimits, FleetScheduler
from scheduler.policies.vtc import VirtualTokenCounter
from scheduler.reports import EngineProgress, LiveRequest, SwitchCounts
from scheduler.service import ServiceWeights

ENGINES = ("engine-a", "engine-b")
TENANTS = ("acme", "bravo")
APPLICATION = "fastswitch"
BEAT_S = 0.1
PUSH_S = 0.5
BLOCK_BYTES = 4096


class LivingFleet:
    """Moves on by ``beat``; what each process would tell is in a registry of its own."""

    def __init__(self) -> None:
        self.has_failing_copies = False
        self._beats = 0
        labels = TenantLabels(TENANTS)
        self._fleet = FleetScheduler(
            partial(VirtualTokenCounter, quantum=1.0),
            clock=monotonic,
            random=Random(0),
            service=ServiceWeights(input=1.0, output=2.0),
            limits=FleetLimits(),
        )
        for engine in ENGINES:
            self._fleet.join(engine, EngineCapacity(4, 1000, 16, BLOCK_BYTES))
        self._collector = FleetCollector(labels)
        self._requests = RequestMetrics("gateway-1", labels)
        self._router, self._replica = RouterMetrics(), ReplicaMetrics(ENGINES[0])
        self.gateway = process_registry(self._collector, self._requests)
        self.router = process_registry(self._router)
        self.replica = process_registry(self._replica)
        self.engine = CollectorRegistry()
        self._caches = [
            Counter(f"vllm:{cache}_{count}", "vLLM's own.", ["engine"], registry=self.engine)
            for cache in ("prefix_cache", "external_prefix_cache")
            for count in ("queries", "hits")
        ]
        self._admit_all()
        self.beat()

    def beat(self) -> None:
        """A tenth of a second of service."""
        self._beats += 1
        for engine in ENGINES:
            self._fleet.on_report(engine, self._progress(engine))
        pressure = msgspec.structs.asdict(self._fleet.take_pressure())
        snapshot = {**self._fleet.snapshot(), "pressure": pressure}
        self._collector.update(msgspec.to_builtins(snapshot), is_router_up=True)
        for tenant in TENANTS:
            self._serve_request(tenant)
        with self._router.answering("admit"):
            self._router.num_engines = len(ENGINES)
        self._replica.exchanged(0.01)
        self._replica.progressed()
        for counter in self._caches:
            counter.labels(ENGINES[0]).inc()

    def _admit_all(self) -> None:
        for number, tenant in enumerate(TENANTS * 8):
            self._fleet.admit(
                AdmitRequest(f"{tenant}-{number}", tenant, None, 100, 10_000, arrival_s=0.0)
            )

    def _serve_request(self, tenant: str) -> None:
        meter = self._requests.started(tenant, 100, now_s=0.0)
        meter.placed(0.002)
        meter.moved("continued")
        for token in range(10):
            meter.tokens(1, 0.1 + token * 0.02)
        meter.finished("stop")

    def _progress(self, engine: str) -> EngineProgress:
        beats = self._beats
        live = [
            LiveRequest(
                f"{tenant}-{number}", tenant, None, 0.0, 100, 100, 10 * beats, 0, is_running=True
            )
            for number, tenant in enumerate(TENANTS * 8)
            if number // 8 == ENGINES.index(engine)
        ]
        switches: dict[str, Any] = dict.fromkeys(SwitchCounts.__struct_fields__, beats)
        switches |= {
            "blocks_out": 60 * beats,
            "blocks_in": 60 * beats,
            "fallbacks": 3 * beats,
            "lost_copies": 0,
            "failed_blocks": beats if self.has_failing_copies else 0,
            "stall_s": 0.0005 * beats,
        }
        return EngineProgress(
            step=beats,
            is_full=True,
            live=live,
            finished=[],
            num_running=4,
            num_waiting=4,
            blocks_used=700,
            blocks_total=1000,
            host_blocks_used=300,
            host_blocks_total=2000,
            switches=SwitchCounts(**switches),
        )


@contextmanager
def told(fleet: LivingFleet, pushgateway: str, port: int) -> Iterator[None]:
    """The fleet under load, its gateway scraped at ``port`` and every process pushed."""
    target = PushTarget(pushgateway, PUSH_S)
    registries = {
        "gateway": fleet.gateway,
        "router": fleet.router,
        "engine_replica": fleet.replica,
        "engine": fleet.engine,
    }
    ended = Event()

    def live() -> None:
        while not ended.wait(BEAT_S):
            fleet.beat()

    with ExitStack() as stack:
        server, _ = start_http_server(port, "127.0.0.1", fleet.gateway)
        stack.callback(server.server_close)
        stack.callback(server.shutdown)
        for job, registry in registries.items():
            chore = StaleGroups(target, APPLICATION).sweep if job == "router" else lambda: None
            pusher = Pusher(
                registry,
                target,
                Group(job, f"{job}-1", APPLICATION),
                Pace(PUSH_S, Random(0)),
                after_push=chore,
            )
            pusher.start()
            stack.callback(pusher.stop)
        thread = Thread(target=live)
        thread.start()
        stack.callback(thread.join)
        stack.callback(ended.set)
        yield
