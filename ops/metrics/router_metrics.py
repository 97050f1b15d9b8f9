"""The router's own work as Prometheus reads it: what it is asked, and how long answers take it.

Owns the counting in the router. The fleet's numbers, which it could tell too, are told by the
gateways (`ops.metrics.fleet_collector`): those can say as well that the router is away.
"""

import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector


class RouterMetrics(Collector):
    """One router. Counted on its event loop, collected on any thread."""

    def __init__(self) -> None:
        self._calls: Counter[str] = Counter()
        self._busy_s: defaultdict[str, float] = defaultdict(float)
        self.num_engines = 0
        self.num_gateways = 0
        self.num_in_line = 0

    @contextmanager
    def answering(self, call: str) -> Iterator[None]:
        """Around the answer to one ``call``."""
        begun_s = time.perf_counter()
        try:
            yield
        finally:
            self._calls[call] += 1
            self._busy_s[call] += time.perf_counter() - begun_s

    def collect(self) -> Iterator[Metric]:
        calls = CounterMetricFamily(
            "fastswitch_router_calls", "Calls that the router has answered.", labels=("call",)
        )
        busy = CounterMetricFamily(
            "fastswitch_router_busy_seconds",
            "Time the router took for its answers; one second a second is all it has.",
            labels=("call",),
        )
        for call, count in list(self._calls.items()):
            calls.add_metric((call,), count)
            busy.add_metric((call,), self._busy_s[call])
        yield calls
        yield busy
        yield GaugeMetricFamily(
            "fastswitch_router_engines", "Engines that have joined.", value=self.num_engines
        )
        yield GaugeMetricFamily(
            "fastswitch_router_gateways", "Gateways heard of late.", value=self.num_gateways
        )
        yield GaugeMetricFamily(
            "fastswitch_router_requests_in_line",
            "Requests that wait in the router until an engine has room.",
            value=self.num_in_line,
        )
