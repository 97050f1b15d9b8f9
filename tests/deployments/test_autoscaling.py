"""Serve's question for the number of engines, answered from what their replicas report."""

from typing import Any

import pytest
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve.config import AutoscalingContext

from deployments.autoscaling import PressurePolicy, as_metrics
from scheduler.pressure import FleetPressure

STRAINED = FleetPressure(delay_s=30.0, busy_share=3.0)
IDLE = FleetPressure()
POLICY = PressurePolicy(
    target_delay_s=2.0, target_switches_per_s=50.0, min_engines=1, max_engines=4
)


def context(*reported: FleetPressure, target: int, running: int | None = None) -> Any:
    """What Serve's controller knows; ``reported`` by a replica each."""
    names = [
        ReplicaID(str(number), DeploymentID("Engine", "fastswitch"))
        for number in range(len(reported))
    ]
    metrics: dict[str, dict[ReplicaID, float]] = {}
    for name, pressure in zip(names, reported, strict=True):
        for metric, value in as_metrics(pressure).items():
            metrics.setdefault(metric, {})[name] = value
    return AutoscalingContext(
        deployment_id=DeploymentID("Engine", "fastswitch"),
        deployment_name="Engine",
        app_name="fastswitch",
        current_num_replicas=target if running is None else running,
        target_num_replicas=target,
        running_replicas=names,
        total_num_requests=0.0,
        total_queued_requests=0.0,
        aggregated_metrics=metrics,
        raw_metrics={},
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=4,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=0.0,
        config=None,
    )


@pytest.mark.parametrize(
    ("reported", "target", "wanted"),
    [
        ([STRAINED], 1, 2),
        ([STRAINED, STRAINED, STRAINED], 3, 4),
        ([IDLE, IDLE], 2, 1),
        ([IDLE], 1, 1),
        ([STRAINED, IDLE], 2, 4),  # one is late: it reports what was before
    ],
)
def test_the_number_follows_what_replicas_report(
    reported: list[FleetPressure], target: int, wanted: int
) -> None:
    """Within the bounds. All report the fleet's pressure, which none of them has to itself."""
    assert POLICY(context(*reported, target=target)) == (wanted, {})


def test_while_nobody_reports_the_number_stays() -> None:
    """The router may be away, or the engines are still starting."""
    assert POLICY(context(target=3)) == (3, {})


def test_no_more_are_wanted_while_some_are_still_to_come() -> None:
    """The pressure stays what it is until they are up: it is no reason for yet more."""
    assert POLICY(context(STRAINED, target=2, running=1)) == (2, {})
    assert POLICY(context(STRAINED, STRAINED, target=2, running=2)) == (4, {})
