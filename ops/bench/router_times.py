"""What `bench router` measures, of which fleet. Plain data, so that --help loads no Ray."""

from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True, slots=True)
class FleetSize:
    """How much the router has to keep in order."""

    live_requests: int
    tenants: int
    engines: int

    def tenth(self) -> "FleetSize":
        return FleetSize(
            max(1, self.live_requests // 10), max(1, self.tenants // 10), max(1, self.engines // 10)
        )


class Took(NamedTuple):
    """One call. Processor time leaves out what the machine's other processes took meanwhile."""

    wall_s: float
    cpu_s: float


@dataclass(frozen=True, slots=True)
class RouterTimes:
    """How long each call of its kind took."""

    reranks: list[Took] = field(default_factory=list)
    admissions: list[Took] = field(default_factory=list)
    reports: list[Took] = field(default_factory=list)
    checkpoints: list[Took] = field(default_factory=list)
    snapshots: list[Took] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RouterTrial:
    """One fleet under load."""

    size: FleetSize
    times: RouterTimes
    rss_mb: float
    changes: list[int]  # priorities that changed, update by update
