"""A worker's copies out of neighbours' host memory: made first, asked then whether they are whole.

Owns the copy and that question. A neighbour writes over its blocks when it likes, be it alive or a
successor; nobody asks it to wait, as that would take a word with a process that may be dead. Why
a block whose stamp and life are still those of the plan is whole:

1. At some moment before the plan, the neighbour's tables were read in a life L (``kv.neighbours``):
   a key with its stamp S, and the same S as landed by every worker. So all bytes were there.
2. A planner strikes S from its index before it orders a copy over the block, and S is never
   given again, not by its successors either. So if the index says S *after* our last byte, no such
   copy had been ordered by then, and none of our bytes is from one.
3. A successor tries its round trip on blocks without striking them, but takes L from its file
   before it begins, and no life comes back. So if the file says L after our last byte, no trial
   had begun.
4. A file that is of no use to a successor is exchanged for another, never changed (``PoolFile``):
   what we have mapped then stays as it was.

That needs our loads in order, hence the barrier. Optimistic reads of this sort are sequence locks.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from kv.errors import SharedPoolError
from kv.memory_order import keep_order
from kv.pool_file import FileKind, NeighbourFile, kind_of
from kv.pool_index import stamps_in
from kv.runs import describe
from kv.swap_plan import BlockCopies, NeighbourBlocks

Rows = Mapping[str, np.ndarray]


class NeighbourCopier:
    """Copies from the files of a rank in neighbours' pools to the same rank's in our own."""

    def __init__(self, index: Path, ranks_file: Path, rows_start: int, own_rows: Rows) -> None:
        """``index`` and ``ranks_file`` are our own; neighbours' have the same names and kinds.

        ``rows_start`` is where rows begin in the file's content.
        """
        self._own_index, self._own_file = index, ranks_file
        self._rows_start = rows_start
        self._own_rows = own_rows
        self._kinds: tuple[FileKind, FileKind] | None = None

    def copy(self, copies: BlockCopies) -> list[int]:
        """Fill our ``host_blocks``; those of them whose source was written over or has gone."""
        source = copies.source
        assert source is not None
        pool = self._own_file.parents[1] / source.pool
        index_kind, file_kind = self._known_kinds()
        try:
            index = NeighbourFile(pool / self._own_index.name, index_kind)
            file = NeighbourFile(pool / self._own_file.name, file_kind)
        except SharedPoolError:
            return copies.host_blocks
        self._copy(file.content[self._rows_start :], source.blocks, copies.host_blocks)
        keep_order()
        is_whole = self._is_whole(index, file, source)
        return [block for block, good in zip(copies.host_blocks, is_whole, strict=True) if not good]

    def _known_kinds(self) -> tuple[FileKind, FileKind]:
        # Not at the start: the planner makes its file after the workers theirs.
        if self._kinds is None:
            self._kinds = kind_of(self._own_index), kind_of(self._own_file)
        return self._kinds

    def _copy(self, memory: np.ndarray, their_blocks: list[int], own_blocks: list[int]) -> None:
        runs = describe(their_blocks, own_blocks)
        start = 0
        for own in self._own_rows.values():
            theirs = memory[start : start + own.size].reshape(own.shape)
            start += own.size
            for run in runs:
                on_theirs = slice(run.device_start, run.device_start + run.num_blocks)
                own[run.host_start : run.host_start + run.num_blocks] = theirs[on_theirs]

    def _is_whole(
        self, index: NeighbourFile, file: NeighbourFile, source: NeighbourBlocks
    ) -> list[bool]:
        [own, *_] = self._own_rows.values()
        stamps = stamps_in(index.content, len(own))[source.blocks]
        is_same = stamps == np.array(source.stamps, dtype="<u8")
        return (is_same & (file.life == source.life)).tolist()
