"""The fleet's snapshot appears in the exposition, under bounded labels and with steady counters."""

from functools import partial
from random import Random
from typing import Any

import pytest
from msgspec import structs
from prometheus_client import CollectorRegistry
from prometheus_client.openmetrics.exposition import generate_latest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from ops.metrics.fleet_collector import RENEW_UPDATES, FleetCollector
from ops.metrics.tenant_labels import REST, TenantLabels
from scheduler.admission import AdmitRequest, EngineCapacity
from scheduler.fleet import FleetLimits, FleetScheduler
from scheduler.policies.vtc import VirtualTokenCounter
from scheduler.pressure import FleetPressure
from scheduler.reports import EngineProgress, LiveRequest, SwitchCounts
from scheduler.service import ServiceWeights

LABELS = {"tenant", "engine", "kind", "state", "pool", "direction", "reason", "outcome"}


def make_tenant(service: float, **numbers: float) -> dict[str, float]:
    return {
        "weight": 1.0,
        "service": service,
        "prompt_tokens": 0,
        "output_tokens": 0,
        "service_share": 0.0,
        "entitled_share": 0.0,
        "counter": 0.0,
        "running": 0,
        "waiting": 0,
        **numbers,
    }


def make_snapshot(
    tenants: dict[str, dict[str, float]], unlisted_service: float = 0.0
) -> dict[str, Any]:
    totals = {
        name: sum(tenant[name] for tenant in tenants.values())
        for name in ("service", "prompt_tokens", "output_tokens", "running", "waiting")
    }
    totals["service"] += unlisted_service
    totals["in_line"] = 0
    return {"tenants": tenants, "engines": {}, "totals": totals}


class Exposed:
    """A fleet collector and its numbers as a Prometheus server would read them."""

    def __init__(self, labels: TenantLabels | None = None) -> None:
        self.collector = FleetCollector(labels or TenantLabels())
        self._registry = CollectorRegistry()
        self._registry.register(self.collector)

    def value(self, name: str, **labels: str) -> float | None:
        return self._registry.get_sample_value(name, labels)

    def families(self) -> dict[str, Any]:
        text = generate_latest(self._registry).decode()  # type: ignore[no-untyped-call]
        families = text_string_to_metric_families(text)  # type: ignore[no-untyped-call]
        return {family.name: family for family in families}


def snapshot_of_a_real_fleet() -> dict[str, object]:
    """One tenant's request half way through on an engine that has switched."""
    fleet = FleetScheduler(
        partial(VirtualTokenCounter, quantum=1.0),
        clock=lambda: 0.0,
        random=Random(0),
        service=ServiceWeights(input=1.0, output=2.0),
        limits=FleetLimits(),
    )
    fleet.join("e1", EngineCapacity(8, blocks_total=100, block_tokens=16, block_bytes=5))
    fleet.admit(
        AdmitRequest(
            request_id="r1",
            tenant="alice",
            conversation=None,
            prompt_tokens=100,
            max_output_tokens=50,
            arrival_s=0.0,
        )
    )
    live = LiveRequest("r1", "alice", None, 0.0, 100, 100, 10, 0, is_running=True)
    switches = SwitchCounts(
        preemptions=5,
        swaps_out=4,
        swaps_in=3,
        blocks_out=40,
        blocks_in=30,
        fallbacks=9,
        recomputed_tokens=77,
        stall_s=0.25,
        unswitchable=2,
        cheaper_recomputes=3,
        descriptors_out=11,
        descriptors_in=12,
        blocks_ahead=13,
        blocks_spared=14,
        blocks_found=20,
        load_waits=21,
        load_waits_1ms=3,
        load_waits_10ms=17,
        load_waits_100ms=19,
        load_waits_1s=20,
        load_wait_s=2.5,
        async_swaps_in=15,
        conflicts=16,
        evicted_blocks=17,
        lost_copies=18,
        failed_blocks=19,
        put_off=22,
        pins=31,
        pin_hits=22,
        pins_wasted=5,
        pins_released=3,
        pinned_blocks=12,
        wasted_block_s=1.5,
        fetched_blocks=41,
        missed_blocks=6,
    )
    report = EngineProgress(
        step=7,
        is_full=True,
        live=[live],
        finished=[],
        num_running=1,
        num_waiting=2,
        blocks_used=60,
        blocks_total=100,
        host_blocks_used=20,
        host_blocks_total=200,
        switches=switches,
    )
    fleet.on_report("e1", report)
    return fleet.snapshot()


def test_a_real_fleets_snapshot_is_exposed_whole() -> None:
    """Service, engines and switches of a fleet's own snapshot are found under their names."""
    exposed = Exposed()
    exposed.collector.update(snapshot_of_a_real_fleet(), is_router_up=True)

    assert exposed.value("fastswitch_router_up") == 1
    assert exposed.value("fastswitch_tenant_service_total", tenant="alice") == 100 + 2 * 10
    assert exposed.value("fastswitch_tenant_service_share_ratio", tenant="alice") == 1
    assert exposed.value("fastswitch_tenant_entitled_share_ratio", tenant="alice") == 1
    assert exposed.value("fastswitch_tenant_weight", tenant="alice") == 1
    assert [
        exposed.value(name, engine="e1", **labels)
        for name, labels in (
            ("fastswitch_engine_requests", {"state": "running"}),
            ("fastswitch_engine_requests", {"state": "waiting"}),
            ("fastswitch_engine_max_requests", {}),
            ("fastswitch_engine_draining", {}),
            ("fastswitch_engine_kv_blocks_used", {"pool": "device"}),
            ("fastswitch_engine_kv_blocks", {"pool": "device"}),
            ("fastswitch_engine_kv_blocks_used", {"pool": "host"}),
            ("fastswitch_engine_kv_blocks", {"pool": "host"}),
            ("fastswitch_engine_preemptions_total", {}),
            ("fastswitch_engine_swaps_total", {"direction": "out"}),
            ("fastswitch_engine_swaps_total", {"direction": "in"}),
            ("fastswitch_engine_swapped_blocks_total", {"direction": "out"}),
            ("fastswitch_engine_swapped_blocks_total", {"direction": "in"}),
            ("fastswitch_engine_swapped_bytes_total", {"direction": "out"}),
            ("fastswitch_engine_swapped_bytes_total", {"direction": "in"}),
            ("fastswitch_engine_recomputed_tokens_total", {}),
            ("fastswitch_engine_swap_stall_seconds_total", {}),
        )
    ] == [1, 2, 8, 0, 60, 100, 20, 200, 5, 4, 3, 40, 30, 200, 150, 77, 0.25]
    assert [
        exposed.value(f"fastswitch_engine_{name}_total", engine="e1", **labels)
        for name, labels in (
            ("swap_fallbacks", {"reason": "unswitchable"}),
            ("swap_fallbacks", {"reason": "cheaper"}),
            ("swap_fallbacks", {"reason": "other"}),
            ("swap_copies", {"direction": "out"}),
            ("swap_copies", {"direction": "in"}),
            ("copied_ahead_blocks", {}),
            ("reused_blocks", {}),
            ("found_blocks", {}),
            ("async_swaps_in", {}),
            ("swap_conflicts", {}),
            ("evicted_host_blocks", {}),
            ("lost_copies", {}),
            ("failed_copy_blocks", {}),
            ("put_off_switches", {}),
            ("neighbour_blocks", {"outcome": "copied"}),
            ("neighbour_blocks", {"outcome": "missed"}),
            ("neighbour_bytes", {}),
        )
    ] == [2, 3, 9 - 2 - 3, 11, 12, 13, 14, 20, 15, 16, 17, 18, 19, 22, 41, 6, 41 * 5]
    assert [
        exposed.value(f"fastswitch_engine_{name}", engine="e1", **labels)
        for name, labels in (
            ("tool_pins_total", {}),
            ("ended_tool_pins_total", {"outcome": "hit"}),
            ("ended_tool_pins_total", {"outcome": "wasted"}),
            ("ended_tool_pins_total", {"outcome": "released"}),
            ("pinned_blocks", {}),
            ("wasted_pin_block_seconds_total", {}),
        )
    ] == [31, 22, 5, 3, 12, 1.5]
    waits = "fastswitch_engine_load_wait_seconds"
    assert [
        exposed.value(f"{waits}_bucket", engine="e1", le=bound)
        for bound in ("0.001", "0.01", "0.1", "1.0", "+Inf")
    ] == [3, 17, 19, 20, 21]
    assert exposed.value(f"{waits}_sum", engine="e1") == 2.5


def test_before_the_first_snapshot_only_the_missing_router_shows() -> None:
    """A gateway that has never heard of its router says just that."""
    exposed = Exposed()
    exposed.collector.update({}, is_router_up=False)

    samples = [sample for family in exposed.families().values() for sample in family.samples]
    assert [(sample.name, sample.value) for sample in samples] == [("fastswitch_router_up", 0)]


def test_names_units_and_labels_follow_prometheus_conventions() -> None:
    """The OpenMetrics parser takes it all; every name is the project's, every text a sentence."""
    exposed = Exposed()
    exposed.collector.update(snapshot_of_a_real_fleet(), is_router_up=True)

    for family in exposed.families().values():
        assert family.name.startswith("fastswitch_")
        assert family.documentation.endswith(".")
        assert family.type in ("counter", "gauge", "histogram")
        for sample in family.samples:
            assert set(sample.labels) <= LABELS | {"le"}


def test_a_hundred_thousand_tenants_stay_few_series() -> None:
    """The best served have a label of their own, all others share one and are complete in it."""
    exposed = Exposed(TenantLabels(max_tenants=10))
    tenants = {f"invented-{number}": make_tenant(float(number)) for number in range(100_000)}
    exposed.collector.update(make_snapshot(tenants), is_router_up=True)

    samples = exposed.families()["fastswitch_tenant_service"].samples
    by_tenant = {sample.labels["tenant"]: sample.value for sample in samples}
    assert set(by_tenant) == {*(f"invented-{number}" for number in range(99_990, 100_000)), REST}
    assert by_tenant[REST] == sum(range(99_990))


def test_the_rest_does_not_fall_when_a_tenant_leaves_the_list() -> None:
    """A fleet lists only so many tenants; what the unlisted received still counts as the rest's."""
    exposed = Exposed(TenantLabels(configured=["ours"], max_tenants=1))
    ours = make_tenant(5.0)
    exposed.collector.update(
        make_snapshot({"ours": ours, "b": make_tenant(3.0), "c": make_tenant(4.0)}),
        is_router_up=True,
    )
    before = exposed.value("fastswitch_tenant_service_total", tenant=REST)

    exposed.collector.update(
        make_snapshot({"ours": ours, "c": make_tenant(4.0)}, unlisted_service=3.0),
        is_router_up=True,
    )

    assert before == exposed.value("fastswitch_tenant_service_total", tenant=REST) == 7


def test_the_rest_does_not_fall_when_one_of_it_is_given_a_label() -> None:
    """Labels go to whoever is served most of late; what the rest had counted before, it keeps."""
    exposed = Exposed(TenantLabels(max_tenants=1))
    early = make_tenant(5.0)
    exposed.collector.update(make_snapshot({"early": early}), is_router_up=True)
    rest: list[float | None] = []
    for service in range(RENEW_UPDATES + 2):
        tenants = {"early": early, "late": make_tenant(float(service))}
        exposed.collector.update(make_snapshot(tenants), is_router_up=True)
        rest.append(exposed.value("fastswitch_tenant_service_total", tenant=REST))

    assert exposed.value("fastswitch_tenant_service_total", tenant="early") is None
    assert exposed.value("fastswitch_tenant_service_total", tenant="late") == service
    assert rest == sorted(rest, key=lambda value: value or 0.0)
    assert rest[-1] == RENEW_UPDATES - 3  # what "late" was served while it had no label


def test_the_fleets_requests_are_told_apart_by_where_they_wait() -> None:
    """Requests in the router's line are not among those that wait on an engine."""
    exposed = Exposed()
    snapshot = make_snapshot({"a": make_tenant(1.0, running=3, waiting=5)})
    snapshot["totals"]["in_line"] = 4

    exposed.collector.update(snapshot, is_router_up=True)

    assert [
        exposed.value("fastswitch_fleet_requests", state=state)
        for state in ("running", "waiting", "in_line")
    ] == [3, 1, 4]


def test_what_autoscaling_goes_by_is_told() -> None:
    """Once the router has measured it; a new one has not."""
    exposed = Exposed()
    exposed.collector.update(make_snapshot({}) | {"pressure": None}, is_router_up=True)
    assert exposed.value("fastswitch_fleet_delay_seconds") is None

    pressure = FleetPressure(delay_s=1.5, switches_per_s=2.0, busy_share=0.75)
    snapshot = make_snapshot({}) | {"pressure": structs.asdict(pressure)}
    exposed.collector.update(snapshot, is_router_up=True)

    assert [
        exposed.value(f"fastswitch_fleet_{name}")
        for name in ("delay_seconds", "switches_per_second", "busy_ratio")
    ] == [1.5, 2.0, 0.75]


def test_the_service_gap_is_between_tenants_that_wait() -> None:
    """A tenant without waiting requests is owed nothing, however far behind its counter is."""
    exposed = Exposed()
    counters = {"ahead": (90.0, 1), "behind": (40.0, 2), "idle": (0.0, 0)}
    tenants = {
        name: make_tenant(1.0, counter=counter, waiting=waiting)
        for name, (counter, waiting) in counters.items()
    }

    exposed.collector.update(make_snapshot(tenants), is_router_up=True)

    assert exposed.value("fastswitch_fleet_service_gap") == 50


def test_the_rest_is_steady_while_others_are_served() -> None:
    """Floating point noise must not look like a counter that began again."""
    exposed = Exposed(TenantLabels(configured=["ours"], max_tenants=1))
    rest = []
    for tokens in range(1, 200):
        tenants = {"ours": make_tenant(0.1 * tokens), "b": make_tenant(0.3)}
        exposed.collector.update(make_snapshot(tenants), is_router_up=True)
        rest.append(exposed.value("fastswitch_tenant_service_total", tenant=REST))

    assert rest == [pytest.approx(0.3, abs=1e-12)] * len(rest)
    assert len(set(rest)) == 1
