"""What is known of an engine that has joined the fleet."""

from dataclasses import dataclass

import msgspec

from scheduler.admission import EngineCapacity
from scheduler.reports import EngineProgress, SwitchCounts

_NOTHING_YET = EngineProgress(
    step=-1,
    is_full=False,
    live=[],
    finished=[],
    num_running=0,
    num_waiting=0,
    blocks_used=0,
    blocks_total=0,
    host_blocks_used=0,
    host_blocks_total=0,
    switches=SwitchCounts(),
)


@dataclass(slots=True)
class JoinedEngine:
    """One engine since it joined: what it can hold and where it stood at its last report."""

    capacity: EngineCapacity
    latest: EngineProgress = _NOTHING_YET
    has_reported: bool = False
    has_reported_full: bool = False

    def note(self, report: EngineProgress) -> int:
        """Keep what the report says of the engine itself; how many steps it made since the last."""
        num_steps = max(report.step - self.latest.step, 0) if self.has_reported else 0
        self.latest = msgspec.structs.replace(report, live=[], finished=[], tenant_service={})
        self.has_reported = True
        self.has_reported_full = self.has_reported_full or report.is_full
        return num_steps
