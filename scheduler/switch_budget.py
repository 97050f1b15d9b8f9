"""How many running requests may be displaced now: a bound on switches per second.

Owns the count, on a clock passed in; who makes way is chosen in ``scheduler.displacement``. A token
bucket with one departure: only its upper half is for those that have run before, so that ranks
that change all the time never use up what an urgent newcomer needs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from math import floor, inf

BURST_S = 1.0  # so much of the rate can be saved up
_SMALLEST_BURST = 2  # one for each half


@dataclass(frozen=True, slots=True)
class Allowance:
    """How many may be displaced in one step, by newcomers and others together.

    Others may displace while the number is below ``returning``, newcomers while it is below
    ``new``.
    """

    new: float = inf
    returning: float = inf


UNLIMITED = Allowance()


class SwitchBudget:
    """A bucket of switches: full at first, filled at ``per_s``, never below 0.

    Whoever asks before each switch that can wait sees to it that these are at most ``per_s`` times
    the seconds of any interval, and one burst. What cannot wait is charged too, as far as there
    is anything to charge it to.
    """

    def __init__(self, per_s: float, *, clock: Callable[[], float]) -> None:
        self._per_s, self._clock = per_s, clock
        self._capacity = max(per_s * BURST_S, _SMALLEST_BURST)
        self._level = self._capacity
        self._filled_s = clock()

    @property
    def allowance(self) -> Allowance:
        level = self._level_at(self._now_s)
        return Allowance(new=floor(level), returning=max(floor(level - self._capacity / 2), 0))

    def charge(self) -> None:
        """A running request has lost its place, whatever for."""
        now_s = self._now_s
        self._level, self._filled_s = max(self._level_at(now_s) - 1, 0.0), now_s

    @property
    def _now_s(self) -> float:
        # A clock that jumps back gives nothing until it is where it was.
        return max(self._clock(), self._filled_s)

    def _level_at(self, now_s: float) -> float:
        return min(self._level + (now_s - self._filled_s) * self._per_s, self._capacity)
