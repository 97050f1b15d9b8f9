"""A gateway's requests as Prometheus reads them: outcomes, tokens, times to and between tokens.

Owns the counting in the gateway; leaves to the caller when a request starts, has tokens and
ends. Each token of every stream passes here, so the counts are plain numbers of one event loop
and become metrics only when somebody asks: prometheus_client's own histogram takes a lock per
bucket and several times as long per observation.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from ops.metrics.tenant_labels import TenantLabels

TTFT_BOUNDS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
TBT_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

PLACE_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)
# How a request's answer goes on with another engine. There from the start: of the first engine that
# dies a rate would show nothing else.
MOVE_WAYS = ("begun", "continued", "replayed")
COMPLETED = frozenset({"stop", "length"})
FAILED = "error"  # there from the start too: an alert would miss the first that fail


@dataclass(frozen=True, slots=True)
class LatencyGoal:
    """What a request has to keep to be a good one: goodput counts no others."""

    ttft_s: float = 1.0
    tbt_s: float = 0.2  # the mean of the request's own


class _Times:
    """A histogram of seconds. ``counts[i]`` are those up to ``bounds[i]``; the last, all longer."""

    __slots__ = ("bounds", "counts", "total_s")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total_s = 0.0

    def observe(self, seconds: float) -> None:
        self.counts[bisect_left(self.bounds, seconds)] += 1
        self.total_s += seconds

    def buckets(self) -> list[tuple[str, float]]:
        """Upper bounds and cumulative counts, as Prometheus wants them."""
        bounds = (*self.bounds, float("inf"))
        return list(zip(map(floatToGoString, bounds), accumulate(self.counts), strict=True))


class _Tally:
    """What has been counted under one tenant's label."""

    __slots__ = (
        "good_output_tokens",
        "good_requests",
        "in_flight",
        "moves",
        "outcomes",
        "output_tokens",
        "placing",
        "prompt_tokens",
        "rejections",
        "tbt",
        "ttft",
    )

    def __init__(self) -> None:
        self.in_flight = 0
        self.good_requests = 0
        self.good_output_tokens = 0
        self.placing = _Times(PLACE_BOUNDS_S)
        self.outcomes = Counter({FAILED: 0})
        self.moves = Counter(dict.fromkeys(MOVE_WAYS, 0))
        self.rejections: Counter[str] = Counter()
        self.prompt_tokens = 0
        self.output_tokens = 0
        self.ttft = _Times(TTFT_BOUNDS_S)
        self.tbt = _Times(TBT_BOUNDS_S)


class RequestMeter:
    """One request, from its start to its end. ``finished`` is called once and is the last."""

    __slots__ = (
        "_first_s",
        "_goal",
        "_is_placed",
        "_last_s",
        "_num_tokens",
        "_started_s",
        "_tally",
    )

    def __init__(self, tally: _Tally, goal: LatencyGoal, started_s: float) -> None:
        self._tally = tally
        self._goal = goal
        self._started_s = self._first_s = self._last_s = started_s
        self._num_tokens = 0
        self._is_placed = False

    def placed(self, now_s: float) -> None:
        """The request has an engine: what it waited until now it waited for the router.

        Counts the first time; another engine later is no wait of the router's line.
        """
        if not self._is_placed:
            self._tally.placing.observe(now_s - self._started_s)
            self._is_placed = True

    def tokens(self, count: int, now_s: float) -> None:
        """``count`` tokens came together: one gap, and none between them."""
        if not count:
            return
        tally = self._tally
        if self._num_tokens:
            tally.tbt.observe(now_s - self._last_s)
        else:
            tally.ttft.observe(now_s - self._started_s)
            self._first_s = now_s
        tally.tbt.counts[0] += count - 1
        tally.output_tokens += count
        self._num_tokens += count
        self._last_s = now_s

    def moved(self, way: str) -> None:
        """Its engine was lost or left, and another has it; its answer goes on in this ``way``."""
        self._tally.moves[way] += 1

    def rejected(self, limit: str) -> None:
        """Its tenant was past this limit of its own; ``finished`` is still to be called."""
        self._tally.rejections[limit] += 1

    def finished(self, outcome: str) -> None:
        """``outcome`` is vLLM's finish reason (stop, length, abort, error ...), or rejected."""
        tally = self._tally
        tally.in_flight -= 1
        tally.outcomes[outcome] += 1
        if outcome in COMPLETED and self._num_tokens and self._keeps_goal():
            tally.good_requests += 1
            tally.good_output_tokens += self._num_tokens

    def _keeps_goal(self) -> bool:
        gaps_s, num_gaps = self._last_s - self._first_s, self._num_tokens - 1
        return (
            self._first_s - self._started_s <= self._goal.ttft_s
            and gaps_s <= num_gaps * self._goal.tbt_s
        )


class RequestMetrics(Collector):
    """All requests of one gateway, by tenant. Counted on one event loop, collected on any thread.

    Every metric has the label ``gateway``: behind one address, scrapes reach now this gateway
    and now that one, whose counts must not pass for each other's.
    """

    def __init__(self, gateway: str, labels: TenantLabels, goal: LatencyGoal | None = None) -> None:
        self._gateway = gateway
        self._labels = labels
        self._goal = goal or LatencyGoal()
        self._tallies: dict[str, _Tally] = {}

    def started(self, tenant: str, prompt_tokens: int, now_s: float) -> RequestMeter:
        label = self._labels.label(tenant)
        tally = self._tallies.get(label)
        if tally is None:
            tally = self._tallies[label] = _Tally()
        tally.in_flight += 1
        tally.prompt_tokens += prompt_tokens
        return RequestMeter(tally, self._goal, now_s)

    def collect(self) -> Iterator[Metric]:
        self._drop_renamed()
        yield self._outcomes()
        yield self._rejections()
        yield self._moves()
        yield self._in_flight()
        yield self._counter(
            "fastswitch_prompt_tokens",
            "Prompt tokens of requests that came in.",
            lambda tally: tally.prompt_tokens,
        )
        yield self._counter(
            "fastswitch_output_tokens",
            "Tokens that were generated.",
            lambda tally: tally.output_tokens,
        )
        yield self._counter(
            "fastswitch_good_requests",
            "Requests that ended by themselves and kept the goals for TTFT and for mean TBT.",
            lambda tally: tally.good_requests,
        )
        yield self._counter(
            "fastswitch_good_output_tokens",
            "Tokens of good requests: their rate is the goodput.",
            lambda tally: tally.good_output_tokens,
        )
        yield self._histogram(
            "fastswitch_time_to_place_seconds",
            "From a request's arrival until it has an engine: the router's call and its line.",
            lambda tally: tally.placing,
        )
        yield self._histogram(
            "fastswitch_time_to_first_token_seconds",
            "From a request's arrival at the gateway to its first token.",
            lambda tally: tally.ttft,
        )
        yield self._histogram(
            "fastswitch_time_between_tokens_seconds",
            "Between two tokens of a request; tokens that came together are 0 apart.",
            lambda tally: tally.tbt,
        )

    def _outcomes(self) -> Metric:
        family = CounterMetricFamily(
            "fastswitch_requests",
            "Requests that have ended, by how.",
            labels=("gateway", "tenant", "outcome"),
        )
        for (_, tenant), tally in self._labelled():
            for outcome, count in list(tally.outcomes.items()):
                family.add_metric((self._gateway, tenant, outcome), count)
        return family

    def _rejections(self) -> Metric:
        family = CounterMetricFamily(
            "fastswitch_rejected_requests",
            "Requests refused since their tenant was past a limit of its own, by limit.",
            labels=("gateway", "tenant", "limit"),
        )
        for (_, tenant), tally in self._labelled():
            for limit, count in list(tally.rejections.items()):
                family.add_metric((self._gateway, tenant, limit), count)
        return family

    def _moves(self) -> Metric:
        family = CounterMetricFamily(
            "fastswitch_moved_requests",
            "Requests sent to another engine since theirs was lost or drained: continued after "
            "the tokens so far, replayed from the prompt, or begun, as no token was out.",
            labels=("gateway", "tenant", "way"),
        )
        for (_, tenant), tally in self._labelled():
            for way, count in list(tally.moves.items()):
                family.add_metric((self._gateway, tenant, way), count)
        return family

    def _in_flight(self) -> Metric:
        family = GaugeMetricFamily(
            "fastswitch_requests_in_flight",
            "Requests that have started and not ended.",
            labels=("gateway", "tenant"),
        )
        for labels, tally in self._labelled():
            family.add_metric(labels, tally.in_flight)
        return family

    def _counter(self, name: str, text: str, count: Callable[[_Tally], float]) -> Metric:
        family = CounterMetricFamily(name, text, labels=("gateway", "tenant"))
        for labels, tally in self._labelled():
            family.add_metric(labels, count(tally))
        return family

    def _histogram(self, name: str, text: str, times: Callable[[_Tally], _Times]) -> Metric:
        family = HistogramMetricFamily(name, text, labels=("gateway", "tenant"))
        for labels, tally in self._labelled():
            family.add_metric(labels, times(tally).buckets(), times(tally).total_s)
        return family

    def _drop_renamed(self) -> None:
        """Labels that went to other tenants: their curves end here, which a rate can take."""
        for label in list(self._tallies):
            if not self._labels.is_given(label):
                self._tallies.pop(label, None)

    def _labelled(self) -> Iterator[tuple[tuple[str, str], _Tally]]:
        # A copy: requests start on their event loop while another thread collects.
        for tenant, tally in list(self._tallies.items()):
            yield (self._gateway, tenant), tally
