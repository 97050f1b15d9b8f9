"""All metrics of ours, as the collectors themselves describe them.

Owns the list of collectors and which process has them; `ops.metrics_page` makes a page of it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from ops.metrics.fleet_collector import FleetCollector
from ops.metrics.replica_metrics import ReplicaMetrics
from ops.metrics.request_metrics import RequestMetrics
from ops.metrics.router_metrics import RouterMetrics
from ops.metrics.tenant_labels import TenantLabels


@dataclass(frozen=True, slots=True)
class MetricEntry:
    """One metric. ``name`` is the one to ask Prometheus for."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


def own_metrics() -> Mapping[str, list[MetricEntry]]:
    """Ours, by where they are counted."""
    labels = TenantLabels()
    collectors: Mapping[str, Collector] = {
        "Requests": RequestMetrics("gateway", labels),
        "Fleet": FleetCollector(labels),
        "Router": RouterMetrics(),
        "Engine replica": ReplicaMetrics("engine"),
    }
    return {whose: entries(collector.collect()) for whose, collector in collectors.items()}


def entries(families: Iterable[Metric]) -> list[MetricEntry]:
    """The families' entries; their labels are the collectors' or, else, those of their samples."""
    return [
        MetricEntry(
            f"{family.name}_total" if family.type == "counter" else family.name,
            family.type,
            _labels(family),
            family.documentation,
        )
        for family in families
    ]


def _labels(family: Metric) -> tuple[str, ...]:
    declared: tuple[str, ...] | None = getattr(family, "_labelnames", None)
    if declared is not None:
        return declared
    # In the order in which the samples have them, each once.
    seen = dict.fromkeys(name for sample in family.samples for name in sample.labels)
    return tuple(name for name in seen if name != "le")
