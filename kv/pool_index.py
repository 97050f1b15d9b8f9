"""What the blocks of a pool hold, written so that whoever comes after a crash can tell.

Owns two tables in shared memory, and the rule that makes a block visible: a block's KV can be found
if the *stamp* with which the planner entered its key is the one with which every worker landed its
copy. The planner enters a key before the copy is ordered, a worker notes the stamp once the bytes
are there, and no stamp is used twice; so there is no moment at which a block that is half written,
or holds somebody else's KV, can be found. A process that is killed loses nothing that it has
stored, so the order of stores is all that is needed; a seal over each entry finds other damage.

Neighbours look at the tables while they are written. What they find is true of some moment since
they began to look; whether it still is, after they have copied a block, the stamps tell
(``kv.neighbour_copier``).
"""

from collections.abc import Sequence
from pathlib import Path
from time import time_ns

import numpy as np

from kv.pool_file import HEADER_BYTES

NUMBER_BYTES = 8
_MIXED = np.uint64(0x9E3779B97F4A7C15)  # odd, its bits in no order: no small number's multiple


class PoolIndex:
    """The planner's table: key, stamp and age of each block.

    An entry whose stamp is 0 says nothing. ``memory`` is of ``index_bytes`` bytes.
    """

    def __init__(self, memory: np.ndarray, num_blocks: int, key_bytes: int) -> None:
        columns = _columns(memory, num_blocks, key_bytes)
        self._stamps, self._seals, self._ages, self._keys = columns
        # Later than any stamp or age in here, whatever the machine's clock says.
        self.first_stamp = 1 + max(
            time_ns(), int(self._stamps.max(initial=0)), int(self._ages.max(initial=0))
        )

    def enter(self, blocks: Sequence[int], keys: Sequence[bytes | None], stamp: int) -> None:
        """``blocks`` are to hold the KV of ``keys``, once copies of this ``stamp`` have landed."""
        self._stamps[blocks] = 0
        entered = [block for block, key in zip(blocks, keys, strict=True) if key is not None]
        if not entered:
            return
        joined = b"".join(key for key in keys if key is not None)
        self._keys[entered] = np.frombuffer(joined, dtype=np.uint8).reshape(len(entered), -1)
        self._ages[entered] = stamp
        self._seals[entered] = self._seal(np.array(entered), np.full(len(entered), stamp))
        self._stamps[entered] = stamp

    def strike(self, blocks: Sequence[int]) -> None:
        """Nobody may find these blocks again."""
        self._stamps[blocks] = 0

    def age(self, blocks: Sequence[int], newest: int) -> None:
        """These blocks were used now: the first at ``newest``, each other one before."""
        self._ages[blocks] = np.arange(newest, newest - len(blocks), -1, dtype="<u8")

    def take_over(self, landed: Sequence[np.ndarray]) -> list[tuple[int, bytes]]:
        """The blocks that hold what the table says, each with its key; the longest unused first.

        ``landed`` are the stamps of every worker's copies. What else the table says is struck; of
        blocks with one key the younger one stays.
        """
        is_good = self._stamps != 0
        for stamps in landed:
            is_good &= stamps == self._stamps
        every = np.arange(len(self._stamps))
        is_good &= self._seal(every, self._stamps) == self._seals
        blocks = every[is_good]
        blocks = blocks[np.argsort(self._ages[blocks], kind="stable")]
        block_by_key: dict[bytes, int] = {}
        for block in blocks.tolist():
            key = self._keys[block].tobytes()
            block_by_key.pop(key, None)  # the younger one comes later in the order too
            block_by_key[key] = block
        is_gone = np.ones(len(every), dtype=bool)
        is_gone[list(block_by_key.values())] = False
        self._stamps[is_gone] = 0
        return [(block, key) for key, block in block_by_key.items()]

    def _seal(self, blocks: np.ndarray, stamps: np.ndarray) -> np.ndarray:
        return _seals(self._keys[blocks], blocks, stamps)


class NeighbourIndex:
    """The same table in the hands of another planner, which may be writing it."""

    def __init__(self, memory: np.ndarray, num_blocks: int, key_bytes: int) -> None:
        self._stamps, self._seals, _, self._keys = _columns(memory, num_blocks, key_bytes)

    def whole(self, landed: Sequence[np.ndarray]) -> np.ndarray:
        """The stamp of each block that every worker has landed, and 0 for all others.

        ``landed`` are the stamps of every worker's copies.
        """
        stamps = self._stamps.copy()
        for each in landed:
            stamps[each != stamps] = 0
        return stamps

    def keys(self, blocks: np.ndarray, stamps: np.ndarray) -> list[bytes | None]:
        """The keys entered with these stamps; None where there is another entry by now."""
        keys = self._keys[blocks]
        is_sealed = _seals(keys, blocks, stamps) == self._seals[blocks]
        found = keys.view(f"V{keys.shape[1]}").ravel().tolist()
        return [
            key if is_good else None for key, is_good in zip(found, is_sealed.tolist(), strict=True)
        ]


class Landings:
    """A worker's table: the stamp of the copy that each block holds."""

    def __init__(self, memory: np.ndarray) -> None:
        self._stamps = memory.view("<u8")

    def note(self, blocks: Sequence[int], stamps: int | np.ndarray) -> None:
        """What copies of these stamps were to bring is there, whole."""
        self._stamps[blocks] = stamps

    def set_aside(self, blocks: Sequence[int]) -> np.ndarray:
        """Hide blocks that are written by way of trial; their stamps, to be noted again after."""
        stamps = self._stamps[blocks]
        self._stamps[blocks] = 0
        return stamps


def index_bytes(num_blocks: int, key_bytes: int) -> int:
    return sum(_column_bytes(num_blocks, key_bytes))


def landing_bytes(num_blocks: int) -> int:
    return num_blocks * NUMBER_BYTES


def landed_stamps(path: Path, num_blocks: int) -> np.ndarray:
    """A worker's table as it stands in its file, right behind the header."""
    return np.fromfile(path, dtype="<u8", count=num_blocks, offset=HEADER_BYTES)


def stamps_in(memory: np.ndarray, num_blocks: int) -> np.ndarray:
    """The stamps of a planner's table, or of a worker's: both begin with them."""
    return memory[: landing_bytes(num_blocks)].view("<u8")


def _columns(memory: np.ndarray, num_blocks: int, key_bytes: int) -> tuple[np.ndarray, ...]:
    sizes = _column_bytes(num_blocks, key_bytes)
    stamps, seals, ages, keys = np.split(memory, np.cumsum(sizes)[:-1])
    numbers = (column.view("<u8") for column in (stamps, seals, ages))
    return (*numbers, keys.reshape(num_blocks, key_bytes))


def _seals(keys: np.ndarray, blocks: np.ndarray, stamps: np.ndarray) -> np.ndarray:
    """For each entry a number that no other is likely to have."""
    words = keys.view("<u8")
    seal = (blocks.astype("<u8") + np.uint64(1)) * _MIXED ^ stamps.astype("<u8")
    for column in range(words.shape[1]):
        seal = (seal ^ words[:, column]) * _MIXED
    return seal


def _column_bytes(num_blocks: int, key_bytes: int) -> list[int]:
    assert key_bytes % NUMBER_BYTES == 0
    return [*[landing_bytes(num_blocks)] * 3, num_blocks * key_bytes]
