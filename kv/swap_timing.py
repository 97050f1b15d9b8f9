"""Whether the engine should wait for a swap-in or go on beside it, from what was measured lately.

Owns the windows of recent copies and steps, and the choice. After the adaptive swapping of
FastSwitch (arXiv:2411.18424); the rule is ours.
"""

from collections import deque
from statistics import median

_WINDOW = 32
# Of the engine's time, what it may spend waiting for copies while others run; half of the one
# percent that nobody should notice, as conflicts cost some too.
_MOST_WAITING = 0.005


class SwapTiming:
    """Recent rates: seconds per block, of copies and of waiting; seconds and requests per step.

    Until something was measured, copies count as free, so that the first are waited for.
    """

    def __init__(self) -> None:
        self._out: deque[tuple[int, float]] = deque(maxlen=_WINDOW)
        self._in: deque[tuple[int, float]] = deque(maxlen=_WINDOW)
        self._waits_for_blocks: deque[tuple[int, float]] = deque(maxlen=_WINDOW)
        self._steps: deque[tuple[int, float]] = deque(maxlen=_WINDOW)
        self._waits: deque[float] = deque(maxlen=_WINDOW)  # of the same steps
        self._planned_wait_s = 0.0  # in the step that is being scheduled

    def add_out(self, num_blocks: int, seconds: float) -> None:
        self._out.append((num_blocks, seconds))

    def add_in(self, num_blocks: int, seconds: float) -> None:
        self._in.append((num_blocks, seconds))

    def add_wait(self, num_blocks: int, seconds: float) -> None:
        """While so many blocks were moved, in either direction, the engine waited so long."""
        self._waits_for_blocks.append((num_blocks, seconds))

    def add_step(self, num_requests: int, seconds: float, wait_s: float) -> None:
        """A step of so many requests is over; of its time, the engine waited ``wait_s``."""
        self._steps.append((num_requests, seconds))
        self._waits.append(wait_s)
        self._planned_wait_s = 0.0

    def plan_wait(self, num_blocks: int) -> None:
        """The step that is being scheduled will wait for a load of so many blocks."""
        self._planned_wait_s += self.in_s(num_blocks)

    def in_s(self, num_blocks: int) -> float:
        """What loading so many blocks will take."""
        return num_blocks * _seconds_per_block(self._in)

    def engine_s(self, num_blocks: int) -> float:
        """What the engine will wait for copies if so many blocks leave and come back.

        Not what the copies take: most of them are beside its steps.
        """
        return 2 * num_blocks * _seconds_per_block(self._waits_for_blocks)

    def num_blocks_out_in_step(self, share: float) -> int | None:
        """How many blocks can be sent in a share of a step; None while that is not known."""
        seconds_per_block = _seconds_per_block(self._out)
        if not self._steps or not seconds_per_block:
            return None
        return int(share * self._step_s / seconds_per_block) + 1

    def is_worth_going_on(self, num_blocks: int) -> bool:
        """Whether to load beside the running requests instead of before their next step.

        Waiting costs every running request the time of the copy; going on costs the loaded one
        the rest of a step. So: wait while few run or the copy is short beside a step, unless the
        engine has waited too much of late.
        """
        if not self._steps:
            return False
        num_requests = median(requests for requests, _ in self._steps)
        load_s = self.in_s(num_blocks)
        if num_requests * load_s > self._step_s:
            return True
        wait_s = sum(self._waits) + self._planned_wait_s + load_s
        return num_requests > 1 and wait_s > _MOST_WAITING * sum(s for _, s in self._steps)

    @property
    def _step_s(self) -> float:
        return median(seconds for _, seconds in self._steps)


def _seconds_per_block(window: deque[tuple[int, float]]) -> float:
    num_blocks = sum(blocks for blocks, _ in window)
    return sum(seconds for _, seconds in window) / num_blocks if num_blocks else 0.0
