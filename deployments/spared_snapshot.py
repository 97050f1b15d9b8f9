"""A snapshot made for whoever asks, but for no more than a small part of the maker's time.

Owns how often it is made anew. It takes the longer the more tenants there are (with 10,000 of them
a tenth of a second), and the thread that makes it has better to do.
"""

import time
from collections.abc import Callable

MAX_CORE_SHARE = 0.05  # of the maker's thread: with more to tell, it is told less often


class SparedSnapshot:
    """The newest that ``make`` has made; made again once so long is over that it may be."""

    def __init__(
        self,
        make: Callable[[], bytes],
        clock: Callable[[], float],
        cpu_clock: Callable[[], float] = time.thread_time,
    ) -> None:
        self._make, self._now_s, self._cpu_s = make, clock, cpu_clock
        self._body = b""
        self._due_s: float | None = None

    def read(self) -> bytes:
        if self._due_s is None or self._now_s() >= self._due_s:
            # Processor time: what others on the machine take meanwhile makes nothing rarer.
            begun_s = self._cpu_s()
            self._body = self._make()
            self._due_s = self._now_s() + (self._cpu_s() - begun_s) / MAX_CORE_SHARE
        return self._body
