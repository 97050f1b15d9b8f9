"""The fleet as Prometheus reads it: tenants' service and shares, engines, context switches.

Owns the names; the numbers are those of ``FleetScheduler.snapshot()``, as ``GET /v1/fairness``
shows them. Whoever serves ``/metrics`` fetches the snapshot first: asking the router takes a
call over the network, which a scrape's plain function cannot wait for.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from ops.metrics.tenant_labels import REST, TenantLabels

Snapshot = Mapping[str, Any]
Numbers = Mapping[str, Any]  # of one tenant or one engine


@dataclass(frozen=True, slots=True)
class _Series:
    """One number of each tenant or engine, with the label values that tell it from its siblings."""

    value: Callable[[Numbers], float]
    labels: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Family:
    name: str
    text: str
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily]
    series: tuple[_Series, ...]
    labels: tuple[str, ...] = ()


def _number(name: str) -> Callable[[Numbers], float]:
    return lambda numbers: numbers[name]


def _switch(name: str) -> Callable[[Numbers], float]:
    return lambda engine: engine["switches"][name]


def _bytes(blocks: str) -> Callable[[Numbers], float]:
    return lambda engine: engine["switches"][blocks] * engine["block_bytes"]


def _other_fallbacks(engine: Numbers) -> float:
    switches = engine["switches"]
    return switches["fallbacks"] - switches["unswitchable"] - switches["cheaper_recomputes"]


_TENANT_FAMILIES = (
    _Family(
        "fastswitch_tenant_service",
        "Service received: weighted prompt and output tokens.",
        CounterMetricFamily,
        (_Series(_number("service")),),
    ),
    _Family(
        "fastswitch_tenant_processed_tokens",
        "Tokens computed for a tenant; none counts twice, however often it was computed.",
        CounterMetricFamily,
        (
            _Series(_number("prompt_tokens"), ("prompt",)),
            _Series(_number("output_tokens"), ("output",)),
        ),
        ("kind",),
    ),
    _Family(
        "fastswitch_tenant_service_share_ratio",
        "A tenant's part of all service so far.",
        GaugeMetricFamily,
        (_Series(_number("service_share")),),
    ),
    _Family(
        "fastswitch_tenant_entitled_share_ratio",
        "A tenant's part of the weights of all tenants with requests now; 0 without one.",
        GaugeMetricFamily,
        (_Series(_number("entitled_share")),),
    ),
    _Family(
        "fastswitch_tenant_requests",
        "Requests now, by state.",
        GaugeMetricFamily,
        (_Series(_number("running"), ("running",)), _Series(_number("waiting"), ("waiting",))),
        ("state",),
    ),
)

_ENGINE_FAMILIES = (
    _Family(
        "fastswitch_engine_requests",
        "Requests now, by state.",
        GaugeMetricFamily,
        (_Series(_number("running"), ("running",)), _Series(_number("waiting"), ("waiting",))),
        ("state",),
    ),
    _Family(
        "fastswitch_engine_max_requests",
        "Requests that can run at once.",
        GaugeMetricFamily,
        (_Series(_number("max_num_seqs")),),
    ),
    _Family(
        "fastswitch_engine_draining",
        "Whether the engine finishes what it has and takes nothing new.",
        GaugeMetricFamily,
        (_Series(_number("draining")),),
    ),
    _Family(
        "fastswitch_engine_kv_blocks_used",
        "KV blocks in use, in the device's memory and in the host's.",
        GaugeMetricFamily,
        (
            _Series(_number("blocks_used"), ("device",)),
            _Series(_number("host_blocks_used"), ("host",)),
        ),
        ("pool",),
    ),
    _Family(
        "fastswitch_engine_kv_blocks",
        "KV blocks there are, in the device's memory and in the host's.",
        GaugeMetricFamily,
        (
            _Series(_number("blocks_total"), ("device",)),
            _Series(_number("host_blocks_total"), ("host",)),
        ),
        ("pool",),
    ),
    _Family(
        "fastswitch_engine_preemptions",
        "Running requests that made way for others.",
        CounterMetricFamily,
        (_Series(_switch("preemptions")),),
    ),
    _Family(
        "fastswitch_engine_put_off_switches",
        "Displacements that had to wait, since max_switches_per_s allowed no more.",
        CounterMetricFamily,
        (_Series(_switch("put_off")),),
    ),
    _Family(
        "fastswitch_engine_swaps",
        "Requests' KV copied to host memory (out) and back (in).",
        CounterMetricFamily,
        (_Series(_switch("swaps_out"), ("out",)), _Series(_switch("swaps_in"), ("in",))),
        ("direction",),
    ),
    _Family(
        "fastswitch_engine_swapped_blocks",
        "KV blocks copied to host memory (out) and back (in).",
        CounterMetricFamily,
        (_Series(_switch("blocks_out"), ("out",)), _Series(_switch("blocks_in"), ("in",))),
        ("direction",),
    ),
    _Family(
        "fastswitch_engine_swapped_bytes",
        "Bytes copied to host memory (out) and back (in).",
        CounterMetricFamily,
        (_Series(_bytes("blocks_out"), ("out",)), _Series(_bytes("blocks_in"), ("in",))),
        ("direction",),
    ),
    _Family(
        "fastswitch_engine_swap_fallbacks",
        "Preemptions whose KV was thrown away, by reason: the request has state beside its KV or "
        "the engine's cannot be moved (unswitchable), "
        "computing again is quicker (cheaper), or other (no room in host memory, a reset, a failed "
        "load).",
        CounterMetricFamily,
        (
            _Series(_switch("unswitchable"), ("unswitchable",)),
            _Series(_switch("cheaper_recomputes"), ("cheaper",)),
            _Series(_other_fallbacks, ("other",)),
        ),
        ("reason",),
    ),
    _Family(
        "fastswitch_engine_swap_copies",
        "Contiguous copies that moved swapped blocks: blocks per copy is the mean run.",
        CounterMetricFamily,
        (
            _Series(_switch("descriptors_out"), ("out",)),
            _Series(_switch("descriptors_in"), ("in",)),
        ),
        ("direction",),
    ),
    _Family(
        "fastswitch_engine_copied_ahead_blocks",
        "Of the blocks copied to host memory, those copied before their request made way.",
        CounterMetricFamily,
        (_Series(_switch("blocks_ahead")),),
    ),
    _Family(
        "fastswitch_engine_reused_blocks",
        "Blocks that a swap-out did not send, since host memory had them already.",
        CounterMetricFamily,
        (_Series(_switch("blocks_spared")),),
    ),
    _Family(
        "fastswitch_engine_found_blocks",
        "Blocks found in host memory and loaded for requests that had not been swapped out.",
        CounterMetricFamily,
        (_Series(_switch("blocks_found")),),
    ),
    _Family(
        "fastswitch_engine_async_swaps_in",
        "Of the swaps in, those beside which the engine went on.",
        CounterMetricFamily,
        (_Series(_switch("async_swaps_in")),),
    ),
    _Family(
        "fastswitch_engine_swap_conflicts",
        "Steps that had to wait for a copy that still read a block they write.",
        CounterMetricFamily,
        (_Series(_switch("conflicts")),),
    ),
    _Family(
        "fastswitch_engine_evicted_host_blocks",
        "KV blocks in host memory that were overwritten for others.",
        CounterMetricFamily,
        (_Series(_switch("evicted_blocks")),),
    ),
    _Family(
        "fastswitch_engine_adopted_blocks",
        "KV blocks that an engine has found in the host memory of one before it that died.",
        CounterMetricFamily,
        (_Series(_switch("adopted_blocks")),),
    ),
    _Family(
        "fastswitch_engine_adopted_bytes",
        "Bytes of these blocks.",
        CounterMetricFamily,
        (_Series(_bytes("adopted_blocks")),),
    ),
    _Family(
        "fastswitch_engine_neighbour_blocks",
        "KV blocks found in the host memory of other engines on the node: copied from there "
        "(copied), or overwritten or gone before that was done (missed).",
        CounterMetricFamily,
        (
            _Series(_switch("fetched_blocks"), ("copied",)),
            _Series(_switch("missed_blocks"), ("missed",)),
        ),
        ("outcome",),
    ),
    _Family(
        "fastswitch_engine_neighbour_bytes",
        "Bytes of the copied ones.",
        CounterMetricFamily,
        (_Series(_bytes("fetched_blocks")),),
    ),
    _Family(
        "fastswitch_engine_refused_host_pools",
        "Host memory that was to outlive its engine and was of no use: of another model, version "
        "or size, damaged, not this user's alone, or more than shared memory has room for.",
        CounterMetricFamily,
        (_Series(_switch("refused_pools")),),
    ),
    _Family(
        "fastswitch_engine_lost_copies",
        "Swapped-out requests that lost KV in that way and compute it again.",
        CounterMetricFamily,
        (_Series(_switch("lost_copies")),),
    ),
    _Family(
        "fastswitch_engine_failed_copy_blocks",
        "KV blocks whose copy failed.",
        CounterMetricFamily,
        (_Series(_switch("failed_blocks")),),
    ),
    _Family(
        "fastswitch_engine_recomputed_tokens",
        "Tokens computed again because their KV was thrown away.",
        CounterMetricFamily,
        (_Series(_switch("recomputed_tokens")),),
    ),
    _Family(
        "fastswitch_engine_swap_stall_seconds",
        "Time the engine's loop has waited for copies.",
        CounterMetricFamily,
        (_Series(_switch("stall_s")),),
    ),
    _Family(
        "fastswitch_engine_tool_pins",
        "Turns that called a tool and whose KV was pinned on the device meanwhile.",
        CounterMetricFamily,
        (_Series(_switch("pins")),),
    ),
    _Family(
        "fastswitch_engine_ended_tool_pins",
        "Pins that have ended: the next turn used the KV (hit), none did (wasted), or other "
        "requests needed the memory (released).",
        CounterMetricFamily,
        (
            _Series(_switch("pin_hits"), ("hit",)),
            _Series(_switch("pins_wasted"), ("wasted",)),
            _Series(_switch("pins_released"), ("released",)),
        ),
        ("outcome",),
    ),
    _Family(
        "fastswitch_engine_pinned_blocks",
        "KV blocks held now for turns to come; other requests can have them.",
        GaugeMetricFamily,
        (_Series(_switch("pinned_blocks")),),
    ),
    _Family(
        "fastswitch_engine_wasted_pin_block_seconds",
        "KV blocks of pins that were of no use, times the seconds they were held.",
        CounterMetricFamily,
        (_Series(_switch("wasted_block_s")),),
    ),
)

RENEW_UPDATES = 300  # tenants' labels go to who is served most every ten minutes

# Upper bounds in seconds, as Prometheus writes them.
_LOAD_WAIT_BUCKETS = (
    ("0.001", "load_waits_1ms"),
    ("0.01", "load_waits_10ms"),
    ("0.1", "load_waits_100ms"),
    ("1.0", "load_waits_1s"),
    ("+Inf", "load_waits"),
)


@dataclass(frozen=True, slots=True)
class _Shown:
    """What is shown until the next snapshot; collected by threads, so it changes as a whole."""

    is_router_up: bool = False
    tenants: Mapping[str, Numbers] = field(default_factory=dict)
    totals: Numbers = field(default_factory=dict)
    engines: Mapping[str, Numbers] = field(default_factory=dict)
    service_gap: float = 0.0
    pressure: Numbers | None = None


class FleetCollector(Collector):
    """The newest snapshot as metrics. Before the first, only that the router is away."""

    def __init__(self, labels: TenantLabels) -> None:
        self._labels = labels
        self._rest = _Rest()
        self._num_updates = 0
        self._service_at_renewal: Mapping[str, float] = {}
        self._shown = _Shown()

    def update(self, snapshot: Snapshot, *, is_router_up: bool) -> None:
        """Show these numbers from now on; while the router is away, its last ones."""
        # All of them are missing before the router's first answer.
        tenants: Mapping[str, Numbers] = snapshot.get("tenants", {})
        totals: Numbers = snapshot.get("totals", {})
        if totals:
            self._renew_labels(tenants)
        self._shown = _Shown(
            is_router_up,
            self._labelled(tenants, totals),
            totals,
            snapshot.get("engines", {}),
            _service_gap(tenants),
            snapshot.get("pressure"),
        )

    def collect(self) -> Iterator[Metric]:
        shown = self._shown
        yield GaugeMetricFamily(
            "fastswitch_router_up",
            "Whether the router answers; if not, the fleet's numbers are the last known.",
            value=shown.is_router_up,
        )
        for family in _TENANT_FAMILIES:
            yield _metric(family, "tenant", shown.tenants)
        yield _weights(shown.tenants)
        yield _fleet_requests(shown.totals)
        yield _fleet_service_gap(shown)
        yield from _pressure(shown.pressure)
        for family in _ENGINE_FAMILIES:
            yield _metric(family, "engine", shown.engines)
        yield _load_waits(shown.engines)

    def _renew_labels(self, tenants: Mapping[str, Numbers]) -> None:
        self._num_updates += 1
        if self._num_updates % RENEW_UPDATES:
            return
        service = {name: tenant["service"] for name, tenant in tenants.items()}
        before, self._service_at_renewal = self._service_at_renewal, service
        self._labels.renew({name: service[name] - before.get(name, 0.0) for name in service})

    def _labelled(self, tenants: Mapping[str, Numbers], totals: Numbers) -> Mapping[str, Numbers]:
        # While there are labels to give, those served most come first.
        names = sorted(tenants, key=lambda name: -tenants[name]["service"])
        own = {name: tenants[name] for name in names if self._labels.label(name) == name}
        if len(own) == len(names) and not self._rest.is_shown:
            return own
        return {**own, REST: self._rest.numbers(own, tenants, totals)}


class _Rest:
    """What the tenants without a label of their own have together.

    Not the sum of them: the snapshot lists only so many, and a sum that falls when one leaves
    the list, or is given a label, looks to Prometheus like a counter that began again at 0. So
    the counters go on from what they were, by what the totals gained and those with labels did
    not.
    """

    def __init__(self) -> None:
        self._counts: dict[str, float] = {}
        self._totals: Numbers = {}
        self._tenants: Mapping[str, Numbers] = {}

    @property
    def is_shown(self) -> bool:
        return bool(self._counts)

    def numbers(
        self, own: Mapping[str, Numbers], tenants: Mapping[str, Numbers], totals: Numbers
    ) -> Numbers:
        for name in ("service", "prompt_tokens", "output_tokens"):
            gained = totals[name] - self._totals.get(name, 0.0)
            gained -= sum(tenant[name] - self._before(label, name) for label, tenant in own.items())
            # A counter that falls in its last binary digit begins again too.
            gained = max(round(gained, 6), 0.0)
            self._counts[name] = round(self._counts.get(name, 0.0) + gained, 6)
        self._totals, self._tenants = totals, tenants
        others = [tenants[name] for name in tenants.keys() - own.keys()]
        service = totals["service"]
        unowned = service - sum(tenant["service"] for tenant in own.values())
        return {
            **self._counts,
            **{
                name: totals[name] - sum(tenant[name] for tenant in own.values())
                for name in ("running", "waiting")
            },
            "service_share": max(unowned, 0.0) / service if service else 0.0,
            "entitled_share": sum(tenant["entitled_share"] for tenant in others),
        }

    def _before(self, label: str, name: str) -> float:
        return self._tenants[label][name] if label in self._tenants else 0.0


def _service_gap(tenants: Mapping[str, Numbers]) -> float:
    counters = [tenant["counter"] for tenant in tenants.values() if tenant["waiting"]]
    return max(counters) - min(counters) if counters else 0.0


# What autoscaling goes by, under the names of ``scheduler.pressure``.
_PRESSURES = (
    (
        "delay_s",
        "fastswitch_fleet_delay_seconds",
        "For how long those have waited, on average, who have not run yet.",
    ),
    (
        "switches_per_s",
        "fastswitch_fleet_switches_per_second",
        "Running requests that make way for others, per engine.",
    ),
    (
        "busy_share",
        "fastswitch_fleet_busy_ratio",
        "Live requests per seat of engines that take new ones; above 1 where some wait.",
    ),
)


def _pressure(pressure: Numbers | None) -> Iterator[Metric]:
    for name, metric, text in _PRESSURES:
        family = GaugeMetricFamily(metric, text)
        if pressure is not None:  # a router that is new has measured none
            family.add_metric((), pressure[name])
        yield family


def _weights(tenants: Mapping[str, Numbers]) -> Metric:
    family = GaugeMetricFamily(
        "fastswitch_tenant_weight", "A tenant's weight among the others.", labels=("tenant",)
    )
    for name, numbers in tenants.items():
        if name != REST:
            family.add_metric((name,), numbers["weight"])
    return family


def _fleet_requests(totals: Numbers) -> Metric:
    family = GaugeMetricFamily(
        "fastswitch_fleet_requests",
        "Requests of the whole fleet now: running, waiting on an engine, or in the router's line.",
        labels=("state",),
    )
    if totals:
        family.add_metric(("running",), totals["running"])
        family.add_metric(("waiting",), totals["waiting"] - totals["in_line"])
        family.add_metric(("in_line",), totals["in_line"])
    return family


def _fleet_service_gap(shown: _Shown) -> Metric:
    family = GaugeMetricFamily(
        "fastswitch_fleet_service_gap",
        "By how much the policy's counters of two tenants with waiting requests differ at most, "
        "in service per weight; 0 where the policy keeps none.",
    )
    if shown.totals:
        family.add_metric((), shown.service_gap)
    return family


def _load_waits(engines: Mapping[str, Numbers]) -> Metric:
    family = HistogramMetricFamily(
        "fastswitch_engine_load_wait_seconds",
        "From when KV is wanted back from host memory until it is there.",
        labels=("engine",),
    )
    for name, engine in engines.items():
        switches = engine["switches"]
        buckets = [(bound, switches[count]) for bound, count in _LOAD_WAIT_BUCKETS]
        family.add_metric((name,), buckets, sum_value=switches["load_wait_s"])
    return family


def _metric(family: _Family, whose: str, members: Mapping[str, Numbers]) -> Metric:
    metric = family.kind(family.name, family.text, labels=(whose, *family.labels))
    for label, numbers in members.items():
        for series in family.series:
            metric.add_metric((label, *series.labels), series.value(numbers))
    return metric
