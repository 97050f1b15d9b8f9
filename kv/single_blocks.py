"""A pool of single blocks: what block groups are compared with.

Owns which blocks are free, and nothing else. The last given back is the first taken, as in
engines without groups.
"""

from collections.abc import Iterable

from kv.errors import BlockNotTakenError, OutOfBlocksError


class SingleBlockPool:
    """The free blocks of one memory, handed out one by one.

    Each block is either free or taken, never both; a method that would break this raises first.
    """

    def __init__(self, name: str, num_blocks: int) -> None:
        self.name = name
        self.num_blocks = num_blocks
        self._free = list(range(num_blocks - 1, -1, -1))
        self._is_taken = bytearray(num_blocks)

    @property
    def num_free(self) -> int:
        return len(self._free)

    def take(self, num_blocks: int, *, after: int | None = None) -> list[int]:
        """Take exactly ``num_blocks`` blocks, wherever they are.

        Raises:
            OutOfBlocksError: too few blocks are free. Nothing is taken.
        """
        if num_blocks > len(self._free):
            raise OutOfBlocksError(self.name, needed=num_blocks, free=len(self._free))
        first = len(self._free) - num_blocks
        taken = self._free[first:][::-1]
        del self._free[first:]
        for block in taken:
            self._is_taken[block] = True
        return taken

    def give(self, blocks: Iterable[int]) -> None:
        """Give blocks back.

        Raises:
            BlockNotTakenError: a block is not taken, or is given twice. Nothing is given back.
        """
        returned = sorted(blocks, reverse=True)
        for previous, block in zip([None, *returned], returned, strict=False):
            if not self._has(block) or block == previous:
                raise BlockNotTakenError(self.name, block)
        for block in returned:
            self._is_taken[block] = False
        self._free.extend(returned)

    def _has(self, block: int) -> bool:
        return 0 <= block < self.num_blocks and bool(self._is_taken[block])
