"""Tails: free blocks kept for whoever may grow into them.

Owns which blocks are kept behind whose last block, and nothing else: not how many that should be.
"""


class Tails:
    """Free blocks right behind somebody's last block; tails never overlap.

    A tail is never empty, and the block before it is in no tail: it is the owner's last block.
    """

    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = 0
        self._is_kept = bytearray(num_blocks)
        self._end_by_last: dict[int, int] = {}

    def __contains__(self, last_block: int) -> bool:
        return last_block in self._end_by_last

    def oldest_first(self) -> list[int]:
        """The owners' last blocks, by how long ago their tail was made or last grown into."""
        return list(self._end_by_last)

    def owner_in(self, start: int, end: int) -> int | None:
        """The last block of an owner whose tail has one of blocks ``start`` to ``end - 1``."""
        kept = self._is_kept.find(1, start, end)
        return self._is_kept.rfind(0, 0, kept) if kept >= 0 else None

    def keep(self, last_block: int, end: int) -> None:
        """Keep the blocks behind ``last_block`` up to ``end - 1``, at least one, for its owner."""
        start = last_block + 1
        assert start < end
        assert last_block not in self._end_by_last
        self._end_by_last[last_block] = end
        self._is_kept[start:end] = b"\1" * (end - start)
        self.num_blocks += end - start

    def grow(self, last_block: int, num_blocks: int) -> int:
        """Let an owner take up to ``num_blocks`` of its tail: their end.

        What is left of the tail is kept behind the last of them.
        """
        start, tail_end = last_block + 1, self._end_by_last.pop(last_block)
        end = start + num_blocks
        if end < tail_end:
            self._end_by_last[end - 1] = tail_end
        else:
            end = tail_end
        self._is_kept[start:end] = bytes(end - start)
        self.num_blocks -= end - start
        return end

    def release(self, last_block: int) -> tuple[int, int]:
        """End an owner's tail: (start, end) of its blocks, which are nobody's now."""
        start, end = last_block + 1, self._end_by_last.pop(last_block)
        self._is_kept[start:end] = bytes(end - start)
        self.num_blocks -= end - start
        return start, end
