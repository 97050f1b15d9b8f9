"""When a replica's process collects garbage: when nobody waits for it.

To find cycles Python walks containers by the hundred thousand, and does so in the middle of a
request: pauses of 50 to 170 ms (AMD EPYC, a gateway under a flood), which find nothing, as what a
request leaves behind goes without a collector but for a few KiB. So what lives when the replica
has started, Ray and Serve for the most part, is never looked at again, and the rest is when
nothing is under way, or once memory has grown by a lot: then it may be garbage.
"""

import asyncio
import gc
from collections.abc import Callable
from typing import NoReturn

import psutil

LOOK_S = 1.0
NEW_CONTAINERS = 10_000  # with fewer it is not worth the while
GROWN_BYTES = 128 * 2**20


def settle_heap() -> None:
    """Take everything that lives now, garbage aside, out of the collector's sight, and stop it."""
    gc.collect()
    gc.freeze()
    gc.disable()


class GarbageWatch:
    """Collects if it is time, whenever ``look`` is called."""

    def __init__(self, is_idle: Callable[[], bool], resident_bytes: Callable[[], int]) -> None:
        self._is_idle = is_idle
        self._resident_bytes = resident_bytes
        self._bytes_before = resident_bytes()

    def look(self) -> None:
        """Collect everything: a part would find nothing of what had to wait so long."""
        is_worthwhile = gc.get_count()[0] >= NEW_CONTAINERS
        has_grown = self._resident_bytes() - self._bytes_before >= GROWN_BYTES
        if has_grown or (is_worthwhile and self._is_idle()):
            gc.collect()
            self._bytes_before = self._resident_bytes()


async def keep_heap(is_idle: Callable[[], bool]) -> NoReturn:
    """Look now and then. ``is_idle`` says whether nobody would wait for a collection."""
    process = psutil.Process()
    watch = GarbageWatch(is_idle, lambda: process.memory_info().rss)
    while True:
        await asyncio.sleep(LOOK_S)
        watch.look()
