"""What `bench router` measures, of which fleet. Plain data, so that --help loads no Ray."""

from dataclasses import dataclass, field


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


@dataclass(frozen=True, slots=True)
class RouterTimes:
    """Seconds of each call of its kind."""

    reranks_s: list[float] = field(default_factory=list)
    admissions_s: list[float] = field(default_factory=list)
    reports_s: list[float] = field(default_factory=list)
    checkpoints_s: list[float] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class RouterTrial:
    """One fleet under load."""

    size: FleetSize
    times: RouterTimes
    rss_mb: float
    changes: list[int]  # priorities that changed, update by update
