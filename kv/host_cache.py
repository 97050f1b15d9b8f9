"""What host memory holds: blocks of KV found by key, and which of them go when room is needed.

Owns keys, ages and who relies on a block; it moves no byte and knows no request. A key is the
engine's own block hash, which covers all tokens up to the block's end, the cache salt and the
LoRA: equal keys mean equal KV, whoever computed it. After the KV cache reuse of FastSwitch
(arXiv:2411.18424), which keeps copies by request.
"""

import heapq
from collections.abc import Hashable, Iterable, Sequence
from typing import Any, Protocol

from kv.errors import OutOfBlocksError

Key = Hashable
_LONG_AGO = -(1 << 62)  # before every generation


class BlockPool(Protocol):
    """Free blocks of one memory; ``kv.block_groups`` has the one that hands out runs."""

    num_blocks: int

    @property
    def num_free(self) -> int: ...

    def take(self, num_blocks: int, *, after: int | None = None) -> list[int]: ...

    def give(self, blocks: Iterable[int]) -> None: ...


class Index(Protocol):
    """What a successor may know of the blocks that can be found: ``kv.pool_index``."""

    first_stamp: int

    def enter(self, blocks: Sequence[int], keys: Sequence[Any], stamp: int) -> None: ...

    def strike(self, blocks: Sequence[int]) -> None: ...

    def age(self, blocks: Sequence[int], newest: int) -> None: ...


class HostCache:
    """Blocks of host memory, each free, *needed* or *spare*.

    A needed block is relied upon by at least one request whose KV is nowhere else. Spare ones are
    overwritten when room is needed: first those of the worst priority (the highest number), among
    these the one unused for longest. An ``index`` has a block's key while the block can be found.
    """

    def __init__(self, pool: BlockPool, index: Index | None = None) -> None:
        self.num_evicted = 0
        self._pool = pool
        self._index = index
        self._keys: list[Key | None] = [None] * pool.num_blocks
        self._block_by_key: dict[Key, int] = {}
        self._num_needing = [0] * pool.num_blocks
        self._num_needed = 0
        self._priorities = [0] * pool.num_blocks
        self._ages = [0] * pool.num_blocks  # when last used, in uses; 0: the block is free
        self._puts = [0] * pool.num_blocks  # in which generation its content was put
        self._generation = 0
        self._clock = index.first_stamp if index else 0
        self.last_stamp = self._clock  # of all that the last put has put
        # Worst first; an entry counts only while it has its block's present age.
        self._spares: list[tuple[int, int, int]] = []

    @property
    def num_blocks(self) -> int:
        return self._pool.num_blocks

    @property
    def num_needed(self) -> int:
        return self._num_needed

    @property
    def num_available(self) -> int:
        """Blocks that are free or spare."""
        return self._pool.num_blocks - self._num_needed

    def find(self, key: Key) -> int | None:
        return self._block_by_key.get(key)

    def put(
        self,
        keys: Sequence[Key | None],
        *,
        after: int | None = None,
    ) -> list[int]:
        """Take blocks for the KV of ``keys``, none of which is held yet; who takes needs them.

        None as a key is for KV that nobody else may find. ``after`` is the block that holds what
        comes before.

        Raises:
            OutOfBlocksError: too many blocks are needed. Nothing is taken or overwritten.
        """
        if len(keys) > self.num_available:
            raise OutOfBlocksError("host", needed=len(keys), free=self.num_available)
        self._evict(len(keys) - self._pool.num_free)
        blocks = self._pool.take(len(keys), after=after)
        self._num_needed += len(blocks)
        # How they rank among others is settled when nobody needs them any more.
        self._clock += 1
        self.last_stamp = self._clock
        if self._index:
            self._index.enter(blocks, keys, self._clock)
        for block, key in zip(blocks, keys, strict=True):
            self._keys[block] = key
            if key is not None:
                self._block_by_key[key] = block
            self._puts[block] = self._generation
            self._num_needing[block] = 1
            self._ages[block] = self._clock
        return blocks

    def adopt(self, held: Sequence[tuple[int, Key]], priority: int) -> None:
        """Begin with what the index's last owner has left: blocks and keys, the oldest first.

        Nothing may have been put before.
        """
        blocks = [block for block, _ in held]
        adopted = set(blocks)
        everything = self._pool.take(self._pool.num_blocks)
        self._pool.give([block for block in everything if block not in adopted])
        for block, key in held:
            self._keys[block] = key
            self._block_by_key[key] = block
            self._puts[block] = _LONG_AGO
        self.use(blocks[::-1], priority)

    def num_yielding_to(self, priority: int, *, at_most: int) -> int:
        """How many blocks, up to ``at_most``, are free or spare and of worse priority."""
        num_found = min(self._pool.num_free, at_most)
        worse = []
        while num_found < at_most and self._spares:
            entry = heapq.heappop(self._spares)
            if not self._is_current(entry):
                continue
            worse.append(entry)
            if -entry[0] <= priority:
                break
            num_found += 1
        for entry in worse:
            heapq.heappush(self._spares, entry)
        return num_found

    def need(self, blocks: Iterable[int]) -> None:
        """Rely on blocks: they stay until as many ``spare`` calls, but for ``forget``."""
        for block in blocks:
            self._num_needed += not self._num_needing[block]
            self._num_needing[block] += 1

    def spare(self, blocks: Sequence[int], priority: int) -> None:
        """End a reliance; whoever finds the blocks by key may still use them."""
        self.use(blocks, priority)
        for block in blocks:
            self._num_needing[block] -= 1
            if not self._num_needing[block]:
                self._num_needed -= 1
                if self._keys[block] is None:
                    self._free([block])
                else:
                    self._list_as_spare(block)

    def use(self, blocks: Sequence[int], priority: int) -> None:
        """Make blocks the youngest; of these the last is the oldest, as it is no use alone."""
        for block in reversed(blocks):
            self._clock += 1
            self._ages[block] = self._clock
            self._priorities[block] = priority
            if not self._num_needing[block]:
                self._list_as_spare(block)
        if self._index:
            self._index.age(blocks, self._clock)

    def forget(self, blocks: Iterable[int]) -> None:
        """Let nobody find these blocks again; those that nobody needs are free at once."""
        known = [block for block in dict.fromkeys(blocks) if self._keys[block] is not None]
        if self._index:
            self._index.strike(known)
        for block in known:
            del self._block_by_key[self._keys[block]]
            self._keys[block] = None
            if not self._num_needing[block]:
                self._free([block])

    def leave_index(self) -> None:
        """What is put from now on is for nobody but who has this cache."""
        if self._index:
            self._index.strike(range(self.num_blocks))
            self._index = None

    def end_generation(self) -> None:
        """What is put from now on is younger than all there is."""
        self._generation += 1

    def recent(self, num_generations: int) -> list[int]:
        """The blocks that were put in the present generation or the ``num_generations`` before."""
        first = self._generation - num_generations
        return [block for block, put in enumerate(self._puts) if put >= first and self._ages[block]]

    def held(self) -> list[int]:
        """The blocks that can be found by a key."""
        return list(self._block_by_key.values())

    def _evict(self, num_blocks: int) -> None:
        evicted: list[int] = []
        while len(evicted) < num_blocks:
            entry = heapq.heappop(self._spares)
            if self._is_current(entry):
                block = entry[2]
                del self._block_by_key[self._keys[block]]
                evicted.append(block)
        # All that is free is taken next, so the index hears of these blocks with their new keys.
        self._free(evicted)
        self.num_evicted += len(evicted)

    def _free(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._keys[block] = None
            self._ages[block] = 0
        self._pool.give(blocks)

    def _list_as_spare(self, block: int) -> None:
        heapq.heappush(self._spares, (-self._priorities[block], self._ages[block], block))
        if len(self._spares) > 2 * self._pool.num_blocks + 64:
            self._spares = [entry for entry in self._spares if self._is_current(entry)]
            heapq.heapify(self._spares)

    def _is_current(self, entry: tuple[int, int, int]) -> bool:
        _, age, block = entry
        return self._ages[block] == age and not self._num_needing[block]
