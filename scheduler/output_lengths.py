"""How many tokens a request is expected to put out, from what finished ones did.

Owns a window of recent output lengths. The expectation is conditioned on what the request has put
out already, as in Past-Future scheduling (arXiv:2507.10150), which draws from that distribution;
here it is its mean, so that the same fleet always decides alike.
"""

from bisect import bisect_right
from collections import deque
from itertools import accumulate

WINDOW = 512
OBSERVATIONS_PER_FIT = 16  # sorting the window takes 50 us: not at every request's end


class OutputLengths:
    """Recent output lengths, and the mean of those beyond a point."""

    def __init__(self, *, initial: float = 256.0) -> None:
        self._initial = initial
        self._recent: deque[int] = deque(maxlen=WINDOW)
        self._num_unfitted = 0
        self._sorted: list[int] = []
        self._sums_beyond: list[int] = [0]  # of the lengths from each index to the end

    @property
    def recent(self) -> list[int]:
        """The window, oldest first: observed again elsewhere it gives the same expectations."""
        return list(self._recent)

    def observe(self, output_tokens: int) -> None:
        self._recent.append(output_tokens)
        self._num_unfitted += 1
        if self._num_unfitted >= min(OBSERVATIONS_PER_FIT, len(self._recent)):
            self._fit()

    def expected_left(self, done: int, limit: int | None) -> float:
        """Tokens to come from a request that has put out ``done`` of at most ``limit``.

        One longer than all recent ones is taken to go on for half as long again.
        """
        left = self._mean_beyond(done) - done
        return left if limit is None else min(left, max(0, limit - done))

    def _mean_beyond(self, done: int) -> float:
        if not self._sorted:
            return max(self._initial, 1.5 * done)
        first = bisect_right(self._sorted, done)
        num_longer = len(self._sorted) - first
        if not num_longer:
            return 1.5 * done
        return self._sums_beyond[first] / num_longer

    def _fit(self) -> None:
        self._num_unfitted = 0
        self._sorted = sorted(self._recent)
        self._sums_beyond = [*accumulate(reversed(self._sorted), initial=0)][::-1]
