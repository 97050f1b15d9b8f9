"""Which blocks the other engines of an application on this node hold: looked up, not asked for.

Owns the planner's view of neighbours' pools, be their owners alive, dead, or on the way to be
followed by another. It is a view of a moment ago: a block may be written over before it has been
copied, which ``kv.neighbour_copier`` finds out. Pools of another kind are never opened. No file
stays open between two looks, so a pool that goes takes its memory along.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import NamedTuple

import numpy as np

from kv.errors import SharedPoolError
from kv.host_cache import Key
from kv.node_pools import pools_beside
from kv.pool_file import FileKind, NeighbourFile, kind_of
from kv.pool_index import NeighbourIndex, stamps_in

# A look costs 0.3 ms a pool (100,000 blocks, an x86 core), and 13 us alone on a node. What a
# neighbour has put away since the last one is found a bit later, or computed.
LOOK_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class PoolShape:
    """What an engine's pool looks like; that of its neighbours is the same."""

    folder: Path
    index: str  # names of files in it
    ranks: list[str]
    num_blocks: int
    key_bytes: int


class Found(NamedTuple):
    """A block of a neighbour's, as ``kv.swap_plan.NeighbourBlocks`` has it."""

    pool: str
    life: int
    block: int
    stamp: int


class Neighbours:
    """Blocks of other engines by key, as of the last look."""

    def __init__(self, own: PoolShape, clock: Callable[[], float] = monotonic) -> None:
        """``own`` has all its files."""
        self._own = own
        self._clock = clock
        self._kinds = [kind_of(own.folder / name) for name in (own.index, *own.ranks)]
        self._pools: dict[str, _Pool] = {}
        self._next_look_s = -np.inf
        self.look()  # the first takes longest, and nobody waits yet

    def look(self) -> None:
        """See what has changed, unless that was just done."""
        now_s = self._clock()
        if now_s < self._next_look_s:
            return
        self._next_look_s = now_s + LOOK_EVERY_S
        pools = {}
        for folder in pools_beside(self._own.folder):
            pool = self._pools.get(folder.name) or _Pool(folder.name, self._own)
            if pool.look(folder, self._kinds):
                pools[folder.name] = pool
        self._pools = pools

    def find(self, key: Key) -> Found | None:
        for pool in self._pools.values():
            if (found := pool.find(key)) is not None:
                return found
        return None


class _Pool:
    """What one neighbour's tables have said. An entry holds for the ``life`` they were read in."""

    def __init__(self, name: str, shape: PoolShape) -> None:
        self._name = name
        self._shape = shape
        self._life: int | None = None
        self._stamps = np.zeros(shape.num_blocks, dtype="<u8")
        self._keys: dict[int, Key] = {}
        self._block_by_key: dict[Key, int] = {}

    def find(self, key: Key) -> Found | None:
        block = self._block_by_key.get(key)
        if block is None or self._life is None:
            return None
        return Found(self._name, self._life, block, int(self._stamps[block]))

    def look(self, folder: Path, kinds: list[FileKind]) -> bool:
        """Read what has changed; whether this is a pool of our kind."""
        names = (self._shape.index, *self._shape.ranks)
        try:
            index, *ranks = (
                NeighbourFile(folder / name, kind) for name, kind in zip(names, kinds, strict=True)
            )
        except SharedPoolError:
            return False
        # Before the tables: what they say may be copied only while this is still so.
        lives = {rank.life for rank in ranks}
        # Of two lives, or none: somebody is just taking the pool over.
        self._life = lives.pop() if len(lives) == 1 else None
        if self._life is not None:
            shape = self._shape
            table = NeighbourIndex(index.content, shape.num_blocks, shape.key_bytes)
            self._update(table, [stamps_in(rank.content, shape.num_blocks) for rank in ranks])
        return True

    def _update(self, table: NeighbourIndex, landed: list[np.ndarray]) -> None:
        stamps = table.whole(landed)
        changed = np.flatnonzero(stamps != self._stamps)
        if not changed.size:
            return
        self._stamps = stamps
        for block in changed.tolist():
            key = self._keys.pop(block, None)
            if key is not None and self._block_by_key.get(key) == block:
                del self._block_by_key[key]
        present = changed[stamps[changed] != 0]
        for block, key in zip(present.tolist(), table.keys(present, stamps[present]), strict=True):
            if key is not None:
                self._keys[block] = key
                self._block_by_key[key] = block
