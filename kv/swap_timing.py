"""Whether the engine should wait for a swap-in or go on beside it, from what was measured lately.

Owns the windows of recent copies and steps, and the choice. After the adaptive swapping of
FastSwitch (arXiv:2411.18424); the rule is ours.
"""

from collections import deque
from statistics import median
from typing import NamedTuple

_WINDOW = 32
# Asked for in most steps, medians of so many steps change little from one to the next.
_STEPS_PER_MEDIAN = 8
# Of the engine's time, what it may spend waiting for copies while others run; half of the one
# percent that nobody should notice, as conflicts cost some too.
_MOST_WAITING = 0.005


class SwapTiming:
    """Recent rates: seconds per block, of copies and of waiting; seconds and requests per step.

    Until something was measured, copies count as free, so that the first are waited for.
    """

    def __init__(self) -> None:
        self._out, self._in, self._waits_for_blocks = _Rate(), _Rate(), _Rate()
        self._steps: deque[_Step] = deque(maxlen=_WINDOW)
        self._steps_s = 0.0  # together
        self._waits_s = 0.0
        self._typical = _TypicalStep(0.0, 0.0)
        self._num_new_steps = 0  # since that was worked out
        self._planned_wait_s = 0.0  # in the step that is being scheduled

    def add_out(self, num_blocks: int, seconds: float) -> None:
        self._out.add(num_blocks, seconds)

    def add_in(self, num_blocks: int, seconds: float) -> None:
        self._in.add(num_blocks, seconds)

    def add_wait(self, num_blocks: int, seconds: float) -> None:
        """While so many blocks were moved, in either direction, the engine waited so long."""
        self._waits_for_blocks.add(num_blocks, seconds)

    def add_step(self, num_requests: int, seconds: float, wait_s: float) -> None:
        """A step of so many requests is over; of its time, the engine waited ``wait_s``."""
        if len(self._steps) == _WINDOW:
            oldest = self._steps[0]
            self._steps_s -= oldest.seconds
            self._waits_s -= oldest.wait_s
        self._steps.append(_Step(num_requests, seconds, wait_s))
        self._steps_s += seconds
        self._waits_s += wait_s
        self._planned_wait_s = 0.0
        self._num_new_steps += 1
        if self._num_new_steps >= min(_STEPS_PER_MEDIAN, len(self._steps)):
            self._num_new_steps = 0
            self._typical = _TypicalStep(
                median(step.num_requests for step in self._steps),
                median(step.seconds for step in self._steps),
            )

    def plan_wait(self, num_blocks: int) -> None:
        """The step that is being scheduled will wait for a load of so many blocks."""
        self._planned_wait_s += self.in_s(num_blocks)

    def in_s(self, num_blocks: int) -> float:
        """What loading so many blocks will take."""
        return num_blocks * self._in.seconds_per_block

    def engine_s(self, num_blocks: int) -> float:
        """What the engine will wait for copies if so many blocks leave and come back.

        Not what the copies take: most of them are beside its steps.
        """
        return 2 * num_blocks * self._waits_for_blocks.seconds_per_block

    def num_blocks_out_in_step(self, share: float) -> int | None:
        """How many blocks can be sent in a share of a step; None while that is not known."""
        seconds_per_block = self._out.seconds_per_block
        if not self._steps or not seconds_per_block:
            return None
        return int(share * self._typical.seconds / seconds_per_block) + 1

    def is_worth_going_on(self, num_blocks: int) -> bool:
        """Whether to load beside the running requests instead of before their next step.

        Waiting costs every running request the time of the copy; going on costs the loaded one
        the rest of a step. So: wait while few run or the copy is short beside a step, unless the
        engine has waited too much of late.
        """
        if not self._steps:
            return False
        typical = self._typical
        load_s = self.in_s(num_blocks)
        if typical.num_requests * load_s > typical.seconds:
            return True
        wait_s = self._waits_s + self._planned_wait_s + load_s
        return typical.num_requests > 1 and wait_s > _MOST_WAITING * self._steps_s


class _Rate:
    """Seconds per block over a window of copies; 0 while there are none."""

    def __init__(self) -> None:
        self.seconds_per_block = 0.0  # asked for more often than it changes
        self._window: deque[tuple[int, float]] = deque(maxlen=_WINDOW)

    def add(self, num_blocks: int, seconds: float) -> None:
        self._window.append((num_blocks, seconds))
        total_blocks = sum(blocks for blocks, _ in self._window)
        total_s = sum(seconds for _, seconds in self._window)
        self.seconds_per_block = total_s / total_blocks if total_blocks else 0.0


class _Step(NamedTuple):
    num_requests: int
    seconds: float
    wait_s: float


class _TypicalStep(NamedTuple):
    """The medians of a window of steps."""

    num_requests: float
    seconds: float
