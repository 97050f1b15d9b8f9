"""The free groups of one pool, found by place and by size.

Owns where runs of free neighbours begin and end, and nothing else: not whom they are kept for, nor
what the blocks still hold. A call costs the same at any pool size, but for finding the start of a
group from its middle, which reads a byte per block of it.
"""

from typing import NamedTuple

# Groups from this size on share one list: few fit into any memory, so they are searched.
_LONG = 1024


class BlockGroup(NamedTuple):
    """Blocks ``start`` to ``end - 1`` of one pool."""

    start: int
    end: int

    @property
    def size(self) -> int:
        return self.end - self.start


class FreeGroups:
    """Free groups never overlap and never touch: two free neighbours are always one group."""

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = 0
        self._is_free = bytearray(num_blocks)
        self._end_by_start = [0] * (num_blocks + 1)  # 0: no group starts here
        self._start_by_end = [-1] * (num_blocks + 1)  # -1: no group ends here
        self._starts_by_size: list[set[int]] = [set() for _ in range(_LONG + 1)]
        self._sizes = 0  # bit n is set while a group of n blocks is free

    def has_any(self, start: int, end: int) -> bool:
        """Whether a block of ``start`` to ``end - 1`` is in a group."""
        return self._is_free.find(1, start, end) >= 0

    def end_of_group_at(self, start: int) -> int:
        """Where the group that begins with ``start`` ends: ``start`` itself if none does."""
        return self._end_by_start[start] or start

    def best_fit(self, num_blocks: int) -> BlockGroup:
        """The smallest group of at least ``num_blocks``, else the largest. There must be one."""
        at_least = min(num_blocks, _LONG)
        fitting = self._sizes >> at_least
        size = at_least + _lowest_bit(fitting) if fitting else self._sizes.bit_length() - 1
        if size < _LONG:
            start = next(iter(self._starts_by_size[size]))
            return BlockGroup(start, start + size)
        groups = [
            BlockGroup(start, self._end_by_start[start]) for start in self._starts_by_size[_LONG]
        ]
        enough = [group for group in groups if group.size >= num_blocks]
        if enough:
            return min(enough, key=lambda group: group.size)
        return max(groups, key=lambda group: group.size)

    def add(self, start: int, end: int) -> None:
        """Make blocks ``start`` to ``end - 1`` free, none of which is: merged with neighbours."""
        self.num_blocks += end - start
        self._is_free[start:end] = b"\1" * (end - start)
        left, right = self._start_by_end[start], self._end_by_start[end]
        if left >= 0:
            self._drop(left, start)
            start = left
        if right:
            self._drop(end, right)
            end = right
        self._insert(start, end)

    def cut(self, start: int, end: int) -> None:
        """Take blocks ``start`` to ``end - 1`` out of the one group that has them: it splits."""
        group_start = start if self._end_by_start[start] else self._is_free.rfind(0, 0, start) + 1
        group_end = self._end_by_start[group_start]
        assert group_start <= start < end <= group_end
        self.num_blocks -= end - start
        self._is_free[start:end] = bytes(end - start)
        self._drop(group_start, group_end)
        if group_start < start:
            self._insert(group_start, start)
        if end < group_end:
            self._insert(end, group_end)

    def _insert(self, start: int, end: int) -> None:
        self._end_by_start[start] = end
        self._start_by_end[end] = start
        size = min(end - start, _LONG)
        self._starts_by_size[size].add(start)
        self._sizes |= 1 << size

    def _drop(self, start: int, end: int) -> None:
        self._end_by_start[start] = 0
        self._start_by_end[end] = -1
        size = min(end - start, _LONG)
        starts = self._starts_by_size[size]
        starts.remove(start)
        if not starts:
            self._sizes ^= 1 << size


def _lowest_bit(bits: int) -> int:
    return (bits & -bits).bit_length() - 1
