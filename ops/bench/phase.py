"""One phase of a benchmark of fairness: a load on a server, and the fleet watched meanwhile.

Owns that a phase begins on a server that is idle and that both accounts of it, the clients' and
the fleet's own, cover the same span of time.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from ops.bench.fleet_watch import Glance, between, switches, wait_until_idle, watching
from ops.bench.tenant_latency import throughput_tok_s
from ops.bench.tenant_load import TenantLoad, TenantLoadResult, put_tenant_load


@dataclass(frozen=True, slots=True)
class Phase:
    """What the clients saw, and the fleet while arrivals were due.

    The first glance is at the begin, before any request; there is at least one more, which lies
    behind the end only if the server answered none in time.
    """

    duration_s: float
    clients: TenantLoadResult
    glances: Sequence[Glance]

    @property
    def throughput_tok_s(self) -> float:
        return throughput_tok_s(self.clients, self.duration_s)

    @property
    def service_per_s(self) -> float:
        """Weighted tokens, prompts included, by the fleet's own count."""
        first, last = self.glances[0], self.glances[-1]
        return (last.service - first.service) / (last.at_s - first.at_s)


def play(load: TenantLoad, every_s: float = 0.5) -> Phase:
    """Put a load on an idle server, look at the fleet ``every_s``, and see its end.

    Raises:
        RequestFailedError: a request broke off, or the server does not come to rest.
    """
    idle = wait_until_idle(load.port)
    with watching(load.port, every_s) as glances:
        clients = put_tenant_load(load)
    at_rest = wait_until_idle(load.port)
    end_s = clients.begin_s + load.duration_s
    seen = between([*glances, at_rest], clients.begin_s, end_s)
    return Phase(
        load.duration_s,
        clients,
        # Nothing was served between the last look at the idle server and the first request.
        [Glance(clients.begin_s, idle.state), *(seen or [at_rest])],
    )


def describe_fleet(phases: Sequence[Phase]) -> dict[str, Any]:
    """How full the engines were and how much they switched, of all phases together.

    ``running`` is how many sequences ran at once, on average over the readings.
    """
    running = [glance.num_running for phase in phases for glance in phase.glances[1:]]
    return {
        "running": round(fmean(running), 2),
        "service_per_s": round(fmean(phase.service_per_s for phase in phases), 1),
        "preemptions": sum(switches(phase.glances, "preemptions") for phase in phases),
        "swaps_out": sum(switches(phase.glances, "swaps_out") for phase in phases),
    }
