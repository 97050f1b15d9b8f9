"""A gateway's requests appear in the exposition as they were told, under bounded labels."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import (
    text_string_to_metric_families as parse_openmetrics,
)
from prometheus_client.parser import text_string_to_metric_families as parse

from ops.metrics.request_metrics import (
    TBT_BOUNDS_S,
    TTFT_BOUNDS_S,
    LatencyGoal,
    RequestMetrics,
)
from ops.metrics.tenant_labels import REST, TenantLabels

TTFT = "fastswitch_time_to_first_token_seconds"
TBT = "fastswitch_time_between_tokens_seconds"


class Exposed:
    """Request metrics and their numbers as a Prometheus server would read them."""

    def __init__(self, labels: TenantLabels | None = None, goal: LatencyGoal | None = None) -> None:
        self.metrics = RequestMetrics("g1", labels or TenantLabels(), goal)
        self._registry = CollectorRegistry()
        self._registry.register(self.metrics)

    def value(self, name: str, **labels: str) -> float | None:
        return self._registry.get_sample_value(name, {"gateway": "g1", **labels})

    def text(self) -> str:
        return generate_latest(self._registry).decode()

    def openmetrics_text(self) -> str:
        return generate_openmetrics(self._registry).decode()  # type: ignore[no-untyped-call]


def test_a_request_is_in_flight_until_it_ends() -> None:
    """In-flight requests go up with a start and down with an end, which counts by its outcome."""
    exposed = Exposed()
    first = exposed.metrics.started("a", 10, now_s=0.0)
    exposed.metrics.started("a", 5, now_s=0.0)

    assert exposed.value("fastswitch_requests_in_flight", tenant="a") == 2
    first.finished("stop")
    assert exposed.value("fastswitch_requests_in_flight", tenant="a") == 1
    assert exposed.value("fastswitch_requests_total", tenant="a", outcome="stop") == 1
    assert exposed.value("fastswitch_prompt_tokens_total", tenant="a") == 15


def test_errors_are_counted_before_there_are_any() -> None:
    """From 0, so that a rate sees the first of a tenant's requests that fail."""
    exposed = Exposed()
    meter = exposed.metrics.started("a", 10, now_s=0.0)
    before = exposed.value("fastswitch_requests_total", tenant="a", outcome="error")

    meter.finished("error")

    after = exposed.value("fastswitch_requests_total", tenant="a", outcome="error")
    assert (before, after) == (0, 1)


def test_a_move_counts_by_the_way_its_answer_goes_on() -> None:
    """Each time that another engine gets the request."""
    exposed = Exposed()
    meter = exposed.metrics.started("a", 10, now_s=0.0)

    meter.moved("continued")
    meter.moved("continued")
    meter.moved("begun")

    moves = [
        exposed.value("fastswitch_moved_requests_total", tenant="a", way=way)
        for way in ("continued", "begun", "replayed")
    ]
    assert moves == [2, 1, 0]


def test_a_rejection_counts_by_its_limit_and_ends_the_request() -> None:
    """Under the tenant's label, which invented names do not multiply."""
    exposed = Exposed(TenantLabels(["a"], max_tenants=1))
    for tenant in ("a", "invented", "another"):
        meter = exposed.metrics.started(tenant, 10, now_s=0.0)
        meter.rejected("max_concurrent")
        meter.finished("rejected")

    name = "fastswitch_rejected_requests_total"
    assert exposed.value(name, tenant="a", limit="max_concurrent") == 1
    assert exposed.value(name, tenant=REST, limit="max_concurrent") == 2
    assert exposed.value("fastswitch_requests_in_flight", tenant="a") == 0
    assert exposed.value("fastswitch_requests_total", tenant="a", outcome="rejected") == 1


def test_the_first_tokens_time_is_told_apart_from_the_later_gaps() -> None:
    """The time to the first token and the gaps after it land in histograms of their own."""
    exposed = Exposed()
    meter = exposed.metrics.started("a", 1, now_s=100.0)

    for now_s in (100.3, 100.34, 100.4):
        meter.tokens(1, now_s)

    assert exposed.value(f"{TTFT}_bucket", tenant="a", le="0.25") == 0
    assert exposed.value(f"{TTFT}_bucket", tenant="a", le="0.5") == 1
    assert exposed.value(f"{TTFT}_sum", tenant="a") == pytest.approx(0.3)
    assert exposed.value(f"{TBT}_bucket", tenant="a", le="0.05") == 1
    assert exposed.value(f"{TBT}_bucket", tenant="a", le="0.1") == 2
    assert exposed.value(f"{TBT}_count", tenant="a") == 2
    assert exposed.value(f"{TBT}_sum", tenant="a") == pytest.approx(0.1)


def test_tokens_that_come_together_have_no_time_between_them() -> None:
    """Three tokens in one message are one gap and two of nothing; every token is counted."""
    exposed = Exposed()
    meter = exposed.metrics.started("a", 1, now_s=0.0)

    meter.tokens(1, 0.1)
    meter.tokens(3, 0.2)

    assert exposed.value("fastswitch_output_tokens_total", tenant="a") == 4
    assert exposed.value(f"{TBT}_bucket", tenant="a", le="0.001") == 2
    assert exposed.value(f"{TBT}_count", tenant="a") == 3
    assert exposed.value(f"{TBT}_sum", tenant="a") == pytest.approx(0.1)


def test_a_message_without_tokens_moves_nothing() -> None:
    """An output that only says the request has ended is no token and no gap."""
    exposed = Exposed()
    meter = exposed.metrics.started("a", 1, now_s=0.0)
    meter.tokens(1, 0.1)

    meter.tokens(0, 5.0)

    assert exposed.value("fastswitch_output_tokens_total", tenant="a") == 1
    assert exposed.value(f"{TBT}_count", tenant="a") == 0


@pytest.mark.parametrize(("name", "bounds"), [(TTFT, TTFT_BOUNDS_S), (TBT, TBT_BOUNDS_S)])
def test_a_time_on_a_bound_belongs_below_it(name: str, bounds: tuple[float, ...]) -> None:
    """Prometheus' buckets include their upper bound; a longer time than all is in +Inf alone."""
    exposed = Exposed()
    for seconds in (bounds[2], bounds[-1] * 2):
        meter = exposed.metrics.started("a", 1, now_s=0.0)
        if name == TBT:
            meter.tokens(1, 0.0)
        meter.tokens(1, seconds)

    at_bound, at_last, in_all = (
        exposed.value(f"{name}_bucket", tenant="a", le=le)
        for le in (str(bounds[2]), str(bounds[-1]), "+Inf")
    )
    assert (at_bound, at_last, in_all) == (1, 1, 2)


@pytest.mark.parametrize(
    ("times_s", "outcome", "is_good"),
    [
        ((0.5, 0.6, 0.7), "stop", True),
        ((0.5, 0.6, 0.7), "length", True),
        ((0.5,), "stop", True),
        ((1.5, 1.6, 1.7), "stop", False),  # late
        ((0.5, 0.9, 1.3), "stop", False),  # slow
        ((0.5, 0.6, 0.7), "abort", False),  # of no use to anyone
        ((), "stop", False),
    ],
)
def test_goodput_counts_requests_that_kept_their_goals(
    times_s: tuple[float, ...], outcome: str, *, is_good: bool
) -> None:
    """Good is a request that ended by itself, began in time and went on in time on the whole."""
    exposed = Exposed(goal=LatencyGoal(ttft_s=1.0, tbt_s=0.2))
    meter = exposed.metrics.started("a", 1, now_s=0.0)
    for now_s in times_s:
        meter.tokens(1, now_s)

    meter.finished(outcome)

    assert exposed.value("fastswitch_good_requests_total", tenant="a") == is_good
    good_tokens = len(times_s) if is_good else 0
    assert exposed.value("fastswitch_good_output_tokens_total", tenant="a") == good_tokens


def test_the_wait_for_an_engine_is_told_apart() -> None:
    """How long the router let a request wait is a histogram of its own."""
    exposed = Exposed()

    exposed.metrics.started("a", 1, now_s=3.0).placed(3.2)

    name = "fastswitch_time_to_place_seconds"
    assert exposed.value(f"{name}_bucket", tenant="a", le="0.05") == 0
    assert exposed.value(f"{name}_bucket", tenant="a", le="0.25") == 1


def test_a_label_that_went_to_another_tenant_takes_its_counts_along() -> None:
    """The curves of a tenant without a label end; its later requests are the rest's."""
    labels = TenantLabels(max_tenants=1)
    exposed = Exposed(labels)
    exposed.metrics.started("early", 1, now_s=0.0).finished("stop")

    labels.renew({"late": 1.0})

    assert exposed.value("fastswitch_requests_in_flight", tenant="early") is None
    exposed.metrics.started("early", 1, now_s=0.0)
    assert exposed.value("fastswitch_requests_in_flight", tenant=REST) == 1


def test_a_hundred_thousand_invented_tenants_stay_few_series() -> None:
    """Names that clients think up cannot fill memory: those beyond the limit share one label."""
    exposed = Exposed(TenantLabels(configured=["ours"], max_tenants=20))
    for number in range(100_000):
        meter = exposed.metrics.started(f"invented-{number}", 1, now_s=0.0)
        meter.tokens(1, 0.1)
        meter.finished("stop")
    exposed.metrics.started("ours", 1, now_s=0.0).finished("stop")

    families = list(parse(exposed.text()))
    tenants = {sample.labels["tenant"] for family in families for sample in family.samples}
    assert len(tenants) == 21  # 20 and the rest
    assert {"ours", REST} <= tenants
    assert sum(len(family.samples) for family in families) < 21 * 70
    assert exposed.value("fastswitch_output_tokens_total", tenant=REST) == 100_000 - 19


def test_names_units_and_labels_follow_prometheus_conventions() -> None:
    """The stricter OpenMetrics parser takes it all; names say their unit, labels are few."""
    exposed = Exposed()
    meter = exposed.metrics.started("a", 1, now_s=0.0)
    meter.tokens(2, 0.1)
    meter.rejected("max_concurrent")
    meter.moved("continued")
    meter.finished("length")

    parsed = parse_openmetrics(exposed.openmetrics_text())  # type: ignore[no-untyped-call]
    families = {family.name: family for family in parsed}
    assert {name: family.type for name, family in families.items()} == {
        "fastswitch_requests": "counter",
        "fastswitch_rejected_requests": "counter",
        "fastswitch_moved_requests": "counter",
        "fastswitch_requests_in_flight": "gauge",
        "fastswitch_prompt_tokens": "counter",
        "fastswitch_output_tokens": "counter",
        "fastswitch_good_requests": "counter",
        "fastswitch_good_output_tokens": "counter",
        "fastswitch_time_to_place_seconds": "histogram",
        TTFT: "histogram",
        TBT: "histogram",
    }
    for family in families.values():
        assert family.documentation.endswith(".")
        for sample in family.samples:
            assert set(sample.labels) - {"le", "outcome", "limit", "way"} == {"gateway", "tenant"}
