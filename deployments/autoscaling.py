"""The number of engines, as Serve asks for it: its autoscaling policy for the engine deployment.

Owns the way from what engine replicas report to the decision of ``scheduler.scaling``, and back.
The router measures the pressure of the whole fleet and gives it to the engines with their
orders; each replica hands Serve's controller that as metrics of its own. Serve keeps the bounds and
acts on a decision once it has held for the delays that are set.
"""

from collections.abc import Mapping
from typing import Any

import msgspec
from ray.serve.config import AutoscalingContext

from scheduler.pressure import FleetPressure
from scheduler.scaling import ScalingGoal, wanted_engines

_SIGNALS = FleetPressure.__struct_fields__


def as_metrics(pressure: FleetPressure) -> dict[str, float]:
    """What a replica reports."""
    return msgspec.structs.asdict(pressure)


class PressurePolicy:
    """Made by Serve's controller, from keywords, and asked ten times a second."""

    def __init__(self, **goal: Any) -> None:
        self._goal = ScalingGoal(**goal)

    def __call__(self, context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
        """The number of engines that is wanted; nothing is kept from one call to the next."""
        now = context.target_num_replicas
        pressure = _reported(context.aggregated_metrics or {})
        if pressure is None:
            return now, {}  # nobody knows: the router is away, or no engine is up
        wanted = wanted_engines(now, pressure, self._goal)
        if wanted > now > context.current_num_replicas:
            return now, {}  # those that were wanted last are still to come
        return wanted, {}


def _reported(metrics: Mapping[str, Mapping[Any, float]]) -> FleetPressure | None:
    """The fleet's pressure: all replicas report the same, those that are late an older one."""
    signals = [metrics.get(name) for name in _SIGNALS]
    if not all(signals):
        return None
    return FleetPressure(*(sum(each.values()) / len(each) for each in signals if each))
