"""The free blocks of the device: handed out as runs, what is cached in them longest unused first.

Owns which free blocks still hold something that the prefix cache may find again, and in which
order they go. What they hold is the engine's business; vLLM's side of it is
``kv.vllm_free_queue``.
"""

from collections import OrderedDict
from collections.abc import Sequence

from kv.block_groups import BlockGroupPool
from kv.errors import OutOfBlocksError

# One block in so many may go out of turn, which costs hits of the prefix cache. Mean run and hit
# rate in tests/kv/test_trace_churn.py, at 90 % use: 28 blocks and 0.305 with one in eight, 21 and
# 0.315 with one in twelve, 15 and 0.318 with one in twenty; vLLM's queue 1.4 and 0.343.
BLOCKS_PER_WINDOW_BLOCK = 8


class DeviceBlockQueue:
    """Free blocks in two parts, each block in one of them.

    The *window* is a pool of groups: blank blocks, and the cached blocks unused for longest.
    Runs are formed in it without regard to age. The *line* has all other cached blocks, in the
    order they became free; from its front the window is filled up.

    So a cached block is overwritten while at most ``window`` cached blocks that are unused for
    longer stay; with a window of 0 the order is exactly that of an LRU queue.
    """

    def __init__(self, num_blocks: int, window: int) -> None:
        """All blocks are blank and free."""
        self._window_size = window
        # Filling up a few blocks at a time costs less than one for each block that is taken.
        self._slack = window // 16
        self._window = BlockGroupPool("device", num_blocks)
        self._line: OrderedDict[int, None] = OrderedDict()
        # Cached blocks are found again one by one and many at a time: they are cut out of their
        # groups together, before anything else looks at those.
        self._found: list[int] = []

    @property
    def num_free(self) -> int:
        return self._window.num_free + len(self._line) - len(self._found)

    def take(self, num_blocks: int, *, after: int | None = None) -> list[int]:
        """Take exactly ``num_blocks`` blocks, in few runs; what they hold is lost.

        ``after`` is the last block that the taker has; what is behind it comes first.

        Raises:
            OutOfBlocksError: too few blocks are free. Nothing is taken.
        """
        if num_blocks > self.num_free:
            raise OutOfBlocksError("device", needed=num_blocks, free=self.num_free)
        self._settle()
        missing = num_blocks + self._window_size - self._window.num_free
        if missing > self._slack and self._line:
            self._fill_window(missing)
        return self._window.take(num_blocks, after=after)

    def find(self, block: int) -> None:
        """Take a free block for what it holds."""
        if block in self._line:
            del self._line[block]
        else:
            self._found.append(block)

    def give_blank(self, blocks: Sequence[int]) -> None:
        """Give back blocks that hold nothing worth keeping: they go first.

        Raises:
            BlockNotTakenError: a block is not taken, or is given twice. Nothing is given back.
        """
        self._settle()
        self._window.give(blocks)

    def give_cached(self, blocks: Sequence[int]) -> None:
        """Give back blocks that are worth keeping: after all others, the first of them first."""
        self._line.update(dict.fromkeys(blocks))

    def _fill_window(self, num_blocks: int) -> None:
        line = self._line
        if num_blocks >= len(line):
            oldest = list(line)
            line.clear()
        else:
            oldest = [line.popitem(last=False)[0] for _ in range(num_blocks)]
        self._window.give(oldest)

    def _settle(self) -> None:
        if self._found:
            self._window.withdraw(self._found)
            self._found.clear()
