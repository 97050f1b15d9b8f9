"""An engine replica's view of its engine as Prometheus reads it: does it step, does it answer.

Owns the counting in the replica. What the engine says of itself is vLLM's (pushed by the engine's
own process) and the fleet's (`ops.metrics.fleet_collector`).
"""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterator
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

EXCHANGE_BOUNDS_S = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 2.0, 10.0)


class ReplicaMetrics(Collector):
    """One engine replica. Counted on its event loop, collected on any thread."""

    def __init__(self, engine: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._now_s = clock
        self._progress_s = clock()
        self._exchanges = [0] * (len(EXCHANGE_BOUNDS_S) + 1)
        self._exchanges_s = 0.0
        self._router_misses = 0

    def exchanged(self, took_s: float) -> None:
        self._exchanges[bisect_left(EXCHANGE_BOUNDS_S, took_s)] += 1
        self._exchanges_s += took_s

    def progressed(self) -> None:
        """The engine has made a token, or has nothing to do."""
        self._progress_s = self._now_s()

    def router_missed(self) -> None:
        self._router_misses += 1

    def collect(self) -> Iterator[Metric]:
        exchanges = HistogramMetricFamily(
            "fastswitch_replica_exchange_seconds",
            "From asking the engine for its progress to its answer: the rest of a step, mostly.",
            labels=("engine",),
        )
        bounds = map(floatToGoString, (*EXCHANGE_BOUNDS_S, float("inf")))
        buckets = list(zip(bounds, accumulate(self._exchanges), strict=True))
        exchanges.add_metric((self._engine,), buckets, self._exchanges_s)
        yield exchanges
        silence = GaugeMetricFamily(
            "fastswitch_replica_engine_silence_seconds",
            "Since the engine last made a token or had nothing to do.",
            labels=("engine",),
        )
        silence.add_metric((self._engine,), self._now_s() - self._progress_s)
        yield silence
        misses = CounterMetricFamily(
            "fastswitch_replica_router_misses",
            "Reports that the router did not answer.",
            labels=("engine",),
        )
        misses.add_metric((self._engine,), self._router_misses)
        yield misses
