"""What is measured in every process, and where it goes: the settings as the processes get them."""

from dataclasses import dataclass, field

from ops.metrics.outlet import Outlets
from ops.metrics.request_metrics import LatencyGoal
from ops.metrics.tenant_labels import DEFAULT_MAX_TENANTS


@dataclass(frozen=True, slots=True)
class MetricsPlan:
    """``has_vllm``: vLLM's own metrics too."""

    outlets: Outlets = field(default_factory=Outlets)
    goal: LatencyGoal = field(default_factory=LatencyGoal)
    max_tenants: int = DEFAULT_MAX_TENANTS
    has_vllm: bool = False


PLAIN_PLAN = MetricsPlan()  # a gateway's /metrics, and no more
