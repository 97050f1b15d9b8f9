"""Block groups: the free blocks of one pool, handed out as long runs of neighbours.

Owns which blocks are free and how many of them are kept for growth. Who asks is known by the last
block they have: no requests, no tensors, no age. After the dynamic block group of FastSwitch
(arXiv:2411.18424), with one departure: how much is kept follows how much is free.
"""

from collections.abc import Iterable

from kv.errors import BlockNotTakenError, OutOfBlocksError
from kv.free_groups import FreeGroups
from kv.runs import runs_of
from kv.tails import Tails

# Where memory is plenty: the 1,000 tokens or so that a group of FastSwitch starts with.
_LONGEST_TAIL = 60
# Of the free blocks, one in so many is kept. Mean run in tests/kv/test_trace_churn.py, at 50 % and
# at 90 % use: 12 and 14 blocks with no tails, 34 and 28 with one in three, 21 and 28 with all kept.
_FREE_PER_KEPT = 3


class BlockGroupPool:
    """The free blocks of one memory.

    Each block is free or taken, never both; a free one is in a group or in one owner's tail, and
    a tail is a wish: it is taken back before anybody goes without. Each method keeps this true
    or raises first.
    """

    def __init__(self, name: str, num_blocks: int) -> None:
        self.name = name
        self.num_blocks = num_blocks
        self._groups = FreeGroups(num_blocks)
        if num_blocks:
            self._groups.add(0, num_blocks)
        self._tails = Tails(num_blocks)
        self._last_blocks: set[int] = set()  # of all who may grow, with a tail or without

    @property
    def num_free(self) -> int:
        return self._groups.num_blocks + self._tails.num_blocks

    def take(self, num_blocks: int, *, after: int | None = None) -> list[int]:
        """Take exactly ``num_blocks`` blocks, in few runs.

        ``after`` is the last block that the taker has; what is behind it comes first.

        Raises:
            OutOfBlocksError: too few blocks are free. Nothing is taken.
        """
        if num_blocks > self.num_free:
            raise OutOfBlocksError(self.name, needed=num_blocks, free=self.num_free)
        if not num_blocks:
            return []
        taken: list[int] = []
        if after is not None:
            self._last_blocks.discard(after)
            self._take_behind(after, num_blocks, taken)
        if len(taken) < num_blocks:
            self._take_elsewhere(num_blocks - len(taken), taken)
        last_block = taken[-1]
        self._last_blocks.add(last_block)
        if last_block not in self._tails:
            self._keep_behind(last_block)
        return taken

    def withdraw(self, blocks: Iterable[int]) -> None:
        """Take exactly these blocks.

        Each must be free: this is for a caller who keeps account of what free blocks hold.
        """
        for start, end in runs_of(blocks):
            while (owner := self._tails.owner_in(start, end)) is not None:
                self._groups.add(*self._tails.release(owner))
            self._groups.cut(start, end)

    def give(self, blocks: Iterable[int]) -> None:
        """Give blocks back.

        Raises:
            BlockNotTakenError: a block is not taken, or is given twice. Nothing is given back.
        """
        returned = list(blocks)
        runs = list(runs_of(returned))
        self._check_taken(runs)
        self._last_blocks.difference_update(returned)
        for start, end in runs:
            # A tail is right behind its owner's last block, so that one ends its run.
            if end - 1 in self._tails:
                _, end = self._tails.release(end - 1)  # noqa: PLW2901
            self._groups.add(start, end)

    def _take_behind(self, last_block: int, num_blocks: int, taken: list[int]) -> None:
        """Up to ``num_blocks`` from the taker's own tail, then from a group right behind it."""
        start, wanted_end = last_block + 1, last_block + 1 + num_blocks
        end = self._tails.grow(last_block, num_blocks) if last_block in self._tails else start
        if end < wanted_end:
            group_end = min(self._groups.end_of_group_at(end), wanted_end)
            if end < group_end:
                self._groups.cut(end, group_end)
                end = group_end
        taken.extend(range(start, end))

    def _take_elsewhere(self, num_blocks: int, taken: list[int]) -> None:
        self._take_back_tails(num_blocks)
        num_kept = self._tail_size(self.num_free, 0)
        while num_blocks:
            group = self._groups.best_fit(num_blocks + num_kept)
            end = min(group.end, group.start + num_blocks)
            num_taken = end - group.start
            num_blocks -= num_taken
            # The taker's tail is cut off together with what it takes: half the work.
            num_behind = 0 if num_blocks else self._tail_size(self.num_free - num_taken, 1)
            tail_end = min(group.end, end + num_behind)
            self._groups.cut(group.start, tail_end)
            if end < tail_end:
                self._tails.keep(end - 1, tail_end)
            taken.extend(range(group.start, end))

    def _take_back_tails(self, num_blocks: int) -> None:
        """Make ``num_blocks`` be in groups, at the cost of those who grew longest ago."""
        if num_blocks <= self._groups.num_blocks:
            return
        for last_block in self._tails.oldest_first():
            self._groups.add(*self._tails.release(last_block))
            if num_blocks <= self._groups.num_blocks:
                return

    def _keep_behind(self, last_block: int) -> None:
        start = last_block + 1
        end = min(self._groups.end_of_group_at(start), start + self._tail_size(self.num_free, 0))
        if start < end:
            self._groups.cut(start, end)
            self._tails.keep(last_block, end)

    def _tail_size(self, num_free: int, num_new: int) -> int:
        """A fair share of what can be kept, by how many may want to grow and one more."""
        num_owners = len(self._last_blocks) + num_new + 1
        return min(_LONGEST_TAIL, num_free // (_FREE_PER_KEPT * num_owners))

    def _check_taken(self, runs: Iterable[tuple[int, int]]) -> None:
        previous_end = 0
        for start, end in runs:
            if start < previous_end or end > self.num_blocks or self._has_free(start, end):
                raise BlockNotTakenError(self.name, start)
            previous_end = end

    def _has_free(self, start: int, end: int) -> bool:
        return self._groups.has_any(start, end) or self._tails.owner_in(start, end) is not None
