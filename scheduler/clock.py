"""Time for the scheduler, whatever the machine's clock does."""

from collections.abc import Callable


class SteadyClock:
    """Seconds since it was made, read from a clock that may jump.

    Never runs back, and never stands still for longer than the jump itself: a step back
    counts as no time, and what follows counts in full. (Holding the highest reading
    would freeze every interval until the clock had caught up with itself.)
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._reading_s = clock()
        self._now_s = 0.0

    def __call__(self) -> float:
        reading_s = self._clock()
        self._now_s += max(0.0, reading_s - self._reading_s)
        self._reading_s = reading_s
        return self._now_s
