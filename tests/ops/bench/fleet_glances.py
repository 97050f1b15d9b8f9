"""Glances at a fleet as tests want them: who has been served how much, and who wants more."""

from collections.abc import Mapping

from ops.bench.fleet_watch import EngineState, FleetState, Glance, TenantState


def glance(
    at_s: float,
    service: Mapping[str, float],
    *,
    weights: Mapping[str, float] | None = None,
    idle: frozenset[str] = frozenset(),
    preemptions: int = 0,
    running: int = 4,
) -> Glance:
    """Tenants with this service; all but the ``idle`` have more live than runs. One engine."""
    tenants = {
        tenant: TenantState(
            weight=(weights or {}).get(tenant, 1.0),
            service=units,
            live=0 if tenant in idle else 8,
            running=0 if tenant in idle else 4,
        )
        for tenant, units in service.items()
    }
    engine = EngineState(
        running=running, waiting=4, max_num_seqs=4, switches={"preemptions": preemptions}
    )
    return Glance(at_s, FleetState(tenants, {"engine": engine}))
