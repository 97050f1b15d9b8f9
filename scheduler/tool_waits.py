"""How long tools take, and how long a turn's KV is worth its memory while one runs.

Owns the durations seen of each tool and the trade between what a pin saves and what it costs.
Who waits for a tool, and whose KV is pinned for it, is ``scheduler.tool_turns``. The idea is the
time-to-live of Continuum (arXiv:2511.02230), with three departures: what coming back costs is
measured against the whole memory's, so that a turn's own size cancels out; memory costs only as
much as others want it; and it is charged for as long as the pin is expected to last, which ends
when the conversation is back, not for as long as it might.
"""

import math
from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass

WINDOW_WAITS = 256  # of each tool
FEW_WAITS = 16  # fewer say less of a tool than those of all tools do
MAX_TOOLS = 4096  # whose names clients make up
# Assumed while nothing was seen: exponential, with about the mean of coding agents' tools.
TYPICAL_WAIT_S = 1.0
ALMOST_ALL_WAITS = 3.0  # times the mean: 95 % of such waits are over by then

NEVER_S = math.inf  # the wait of a conversation that did not come back


@dataclass(frozen=True, slots=True)
class DeviceMemory:
    """What a device's memory is worth now.

    ``refill_s`` is the time it would take to bring back all the KV that it can hold; ``demand``
    the part of a block's time that others would make use of, from 0 (plenty is free) to 1.
    """

    refill_s: float
    demand: float


class ToolWaits:
    """Past waits by tool, the newest of each; those of all tools together stand in for a few."""

    def __init__(self, *, max_tools: int = MAX_TOOLS) -> None:
        self._max_tools = max_tools
        self._by_tool: OrderedDict[Hashable, deque[float]] = OrderedDict()
        self._together: deque[float] = deque(maxlen=WINDOW_WAITS)

    def __len__(self) -> int:
        return len(self._by_tool)

    def observe(self, tool: Hashable, wait_s: float) -> None:
        """A conversation came back so long after it had called this tool."""
        waits = self._by_tool.setdefault(tool, deque(maxlen=WINDOW_WAITS))
        self._by_tool.move_to_end(tool)
        waits.append(wait_s)
        self._together.append(wait_s)
        if len(self._by_tool) > self._max_tools:
            self._by_tool.popitem(last=False)

    def ttl_s(self, tool: Hashable, memory: DeviceMemory, *, at_most_s: float) -> float:
        """For how long to pin a turn's KV that ended with a call of this tool; 0 for not at all.

        The time that maximises ``P(wait <= time) * refill_s - E[min(wait, time)] * demand``: what
        a turn saves and the memory it holds both grow with its size.
        """
        waits = self._by_tool.get(tool, ())
        if len(waits) < FEW_WAITS:
            waits = self._together
        if len(waits) < FEW_WAITS:
            return _default_ttl_s(memory, at_most_s)
        return _empirical_ttl_s(sorted(waits), memory, at_most_s)


def _empirical_ttl_s(waits: list[float], memory: DeviceMemory, at_most_s: float) -> float:
    """Between two waits a longer pin only costs more, so only the waits themselves are tried."""
    best_s, best_gain_s, past_s = 0.0, 0.0, 0.0
    for num_back, wait_s in enumerate(waits, 1):
        if wait_s > at_most_s:
            break
        past_s += wait_s
        held_s = past_s + (len(waits) - num_back) * wait_s
        gain_s = (num_back * memory.refill_s - held_s * memory.demand) / len(waits)
        if gain_s > best_gain_s:
            best_s, best_gain_s = wait_s, gain_s
    return best_s


def _default_ttl_s(memory: DeviceMemory, at_most_s: float) -> float:
    """Of exponential waits the next second is worth as much as the first: all of them or none."""
    if memory.refill_s <= TYPICAL_WAIT_S * memory.demand:
        return 0.0
    return min(ALMOST_ALL_WAITS * TYPICAL_WAIT_S, at_most_s)
