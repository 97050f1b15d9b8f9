"""What is known of an engine that has joined the fleet."""

from dataclasses import dataclass

import msgspec

from scheduler.admission import EngineCapacity
from scheduler.reports import EngineProgress, SwitchCounts
from scheduler.tool_waits import DeviceMemory

# Until an engine has measured what a token's KV takes to compute again or to load.
TYPICAL_RELOAD_TOKEN_S = 1e-4
# Where live requests use less of the blocks, nobody misses what is pinned; from the second on
# each block is missed for as long as it is held.
NO_DEMAND_SHARE, FULL_DEMAND_SHARE = 0.5, 0.9

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
    is_draining: bool = False  # finishes what it has and takes nothing new

    def note(self, report: EngineProgress) -> int:
        """Keep what the report says of the engine itself; how many steps it made since the last."""
        num_steps = max(report.step - self.latest.step, 0) if self.has_reported else 0
        self.latest = msgspec.structs.replace(report, live=[], finished=[], tenant_service={})
        self.has_reported = True
        return num_steps

    @property
    def memory(self) -> DeviceMemory:
        """What the device's memory is worth, by the last report."""
        latest, capacity = self.latest, self.capacity
        used_share = latest.blocks_used / latest.blocks_total if latest.blocks_total else 0.0
        demand = (used_share - NO_DEMAND_SHARE) / (FULL_DEMAND_SHARE - NO_DEMAND_SHARE)
        return DeviceMemory(
            refill_s=(latest.reload_token_s or TYPICAL_RELOAD_TOKEN_S)
            * (capacity.blocks_total * capacity.block_tokens),
            demand=min(max(demand, 0.0), 1.0),
        )
