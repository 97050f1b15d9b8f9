"""What does pushing metrics cost a gateway with many tenants?

Pushes the metrics of a gateway (requests by tenant, the fleet's numbers) to a Pushgateway stand-in
in another process: once with the default number of tenants' labels, once with a label for each
tenant. Inside the timer: the processor time of the pushing thread, from collecting to the answer.
Not inside: what the other process does. The ceiling is the 1 % of a core that pushing may take.
"""

import re
import time
from argparse import ArgumentParser, Namespace
from dataclasses import dataclass
from random import Random
from statistics import median
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest, push_to_gateway
from rich.table import Table

from ops.bench.arguments import count
from ops.bench.push_sink import push_sink
from ops.bench.result import BenchResult
from ops.metrics.fleet_collector import FleetCollector
from ops.metrics.outlet import process_registry
from ops.metrics.push import MAX_CORE_SHARE, Group, Pace
from ops.metrics.request_metrics import RequestMetrics
from ops.metrics.tenant_labels import DEFAULT_MAX_TENANTS, REST, TenantLabels
from scheduler.reports import SwitchCounts

EXAMPLE = "fastswitch bench push --tenants 1000"
GROUP = Group("gateway", "gateway-1", "bench")
NUM_ENGINES = 4
TENANT_LABEL = re.compile(rb'tenant="([^"]*)"')
PUSH_S = 10.0  # the default of metrics.push_s


@dataclass(frozen=True, slots=True)
class Cost:
    """What pushing cost with so many tenants that have labels of their own."""

    labels: int
    series: int
    push_bytes: int
    cpu_s: list[float]

    @property
    def interval_s(self) -> float:
        """How often a gateway would push, with the default setting."""
        return Pace(PUSH_S, Random(0)).after_push(median(self.cpu_s))

    @property
    def core_share(self) -> float:
        return median(self.cpu_s) / self.interval_s

    def keys(self) -> dict[str, Any]:
        return {
            "labels": self.labels,
            "series": self.series,
            "push_bytes": self.push_bytes,
            "push_cpu_ms": {"p50": median(self.cpu_s) * 1e3, "max": max(self.cpu_s) * 1e3},
            "interval_s": self.interval_s,
            "core_share": self.core_share,
        }


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--tenants", type=count, default=1000, metavar="N", help="(default: 1000)")
    parser.add_argument("--pushes", type=count, default=20, metavar="N", help="(default: 20)")


def run(options: Namespace) -> BenchResult:
    random = Random(options.seed)
    with push_sink() as url:
        costs = {
            name: _measure(url, _gateway(options.tenants, max_labels, random), options.pushes)
            for name, max_labels in (
                ("default_labels", min(options.tenants, DEFAULT_MAX_TENANTS)),
                ("all_labelled", options.tenants),
            )
        }
    keys = {name: cost.keys() for name, cost in costs.items()}
    return BenchResult(
        {"tenants": options.tenants, "ceiling_core_share": MAX_CORE_SHARE, **keys},
        _table(costs),
    )


def _gateway(num_tenants: int, max_labels: int, random: Random) -> CollectorRegistry:
    """A gateway's registry after every tenant's first request."""
    tenants = [f"tenant-{number:05}" for number in range(num_tenants)]
    labels = TenantLabels(max_tenants=max_labels)
    requests, fleet = RequestMetrics("gateway-1", labels), FleetCollector(labels)
    for tenant in tenants:
        meter = requests.started(tenant, random.randint(10, 2000), now_s=0.0)
        meter.placed(0.001)
        for token in range(random.randint(1, 20)):
            meter.tokens(1, 0.1 + token * random.uniform(0.01, 0.1))
        meter.finished(random.choice(("stop", "length", "abort", "error")))
    fleet.update(_snapshot(tenants, random), is_router_up=True)
    return process_registry(requests, fleet)


def _snapshot(tenants: list[str], random: Random) -> dict[str, Any]:
    rows = {
        tenant: {
            "weight": 1.0,
            "service": random.uniform(1, 1e6),
            "prompt_tokens": random.randint(1, 10**6),
            "output_tokens": random.randint(1, 10**6),
            "service_share": 1 / len(tenants),
            "entitled_share": 1 / len(tenants),
            "counter": random.uniform(1, 1e6),
            "running": random.randint(0, 9),
            "waiting": random.randint(0, 99),
        }
        for tenant in tenants
    }
    counted = ("service", "prompt_tokens", "output_tokens", "running", "waiting")
    totals = {name: sum(row[name] for row in rows.values()) for name in counted}
    engine = {
        "running": 64,
        "waiting": 10,
        "max_num_seqs": 64,
        "blocks_used": 900,
        "blocks_total": 1000,
        "host_blocks_used": 900,
        "host_blocks_total": 1000,
        "block_bytes": 2**20,
        "draining": False,
        "switches": {name: random.randint(0, 10**6) for name in SwitchCounts.__struct_fields__},
    }
    engines = {f"engine-{number}": engine for number in range(NUM_ENGINES)}
    return {"tenants": rows, "totals": {**totals, "in_line": 0}, "engines": engines}


def _measure(url: str, registry: CollectorRegistry, pushes: int) -> Cost:
    def push() -> float:
        begun_s = time.thread_time()
        push_to_gateway(url, GROUP.job, registry, GROUP.key)
        return time.thread_time() - begun_s

    push()  # warm-up: the first connection, first touch of the memory
    text = generate_latest(registry)
    series = sum(not line.startswith(b"#") for line in text.splitlines())
    return Cost(len(_own_labels(text)), series, len(text), [push() for _ in range(pushes)])


def _own_labels(text: bytes) -> set[bytes]:
    return set(TENANT_LABEL.findall(text)) - {REST.encode()}


def _table(costs: dict[str, Cost]) -> Table:
    table = Table(
        "", "labels", "series", "kB", "CPU per push, ms", "a push every, s", "% of one core"
    )
    for name, cost in costs.items():
        table.add_row(
            name.replace("_", " "),
            str(cost.labels),
            str(cost.series),
            f"{cost.push_bytes / 1e3:.0f}",
            f"{median(cost.cpu_s) * 1e3:.1f}",
            f"{cost.interval_s:.0f}",
            f"{cost.core_share * 100:.2f}",
        )
    return table
