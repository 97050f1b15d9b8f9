"""A neighbour's planner and worker on a small pool, to be looked at between any two stores.

The bytes of a block tell its key and its layer.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kv.host_cache import HostCache
from kv.pool_index import _seals
from kv.settings import PoolPlace
from kv.shared_host import OpenedIndex, SharedRows, open_index
from kv.single_blocks import SingleBlockPool
from kv.swap_plan import BlockCopies, Direction, Urgency

NUM_BLOCKS, KEY_BYTES, ROW_BYTES = 4, 32, 32
LAYERS = ("first", "second")
FACTS = b"a model"


def key(number: int) -> bytes:
    return sha256(b"%d" % number).digest()


def content(of: bytes, layer: str) -> np.ndarray:
    return np.frombuffer(sha256(of + layer.encode()).digest(), dtype=np.uint8)


class Steered:
    """Memory that others may look at between any two stores."""

    def __init__(self, memory: np.ndarray, turn: Callable[[], None]) -> None:
        self._memory, self._turn = memory, turn
        self.shape, self.size = memory.shape, memory.size

    def __len__(self) -> int:
        return len(self._memory)

    def __getitem__(self, where: Any) -> Any:
        return self._memory[where]

    def __setitem__(self, where: Any, values: Any) -> None:
        where = range(*where.indices(len(self))) if isinstance(where, slice) else list(where)
        shape = self._memory[list(where)].shape
        for one, value in zip(where, np.broadcast_to(values, shape), strict=True):
            self._turn()
            self._memory[one] = value
        self._turn()


def rows_in(folder: Path, life: int, facts: bytes = FACTS) -> SharedRows:
    device = {name: torch.zeros((1, ROW_BYTES), dtype=torch.uint8) for name in LAYERS}
    return SharedRows(PoolPlace(folder, life), 0, facts, device, NUM_BLOCKS, host_kv_gib=0.01)


def index_in(folder: Path, life: int) -> OpenedIndex:
    opened = open_index(
        PoolPlace(folder, life), FACTS, num_ranks=1, num_host_blocks=NUM_BLOCKS, key_bytes=KEY_BYTES
    )
    assert opened is not None
    return opened


class Owner:
    """A neighbour: its planner and its worker, each other's successor at times."""

    def __init__(self, folder: Path, turn: Callable[[], None] = lambda: None) -> None:
        folder.mkdir()
        self._folder, self._turn = folder, turn
        self._lives = count(1)
        self.pending: list[tuple[list[int], list[bytes | None], int]] = []
        self._start()

    def put(self, numbers: Sequence[int]) -> None:
        """What is the first to write over others' blocks is for nobody to find."""
        fresh = [key(n) for n in numbers if self.cache.find(key(n)) is None]
        keys: list[bytes | None] = [None, *fresh]
        if len(keys) <= self.cache.num_available:
            blocks = self.cache.put(keys)
            self.pending.append((blocks, keys, self.cache.last_stamp))
            self.cache.spare(blocks, 0)

    def land(self) -> None:
        if self.pending:
            blocks, keys, stamp = self.pending.pop(0)
            for block, one in zip(blocks, keys, strict=True):
                self._write(block, one or b"nobody's")
            self.rows.note(BlockCopies(Direction.OUT, Urgency.NOBODY, [], blocks, stamp=stamp))

    def forget(self, numbers: Sequence[int]) -> None:
        held = (self.cache.find(key(number)) for number in numbers)
        self.cache.forget([block for block in held if block is not None])

    def die(self) -> None:
        """Leave everything as it stands."""
        self.rows.close()
        self.opened.file.close()
        self.pending = []
        # The mappings end with the process; here, with these.
        del self.rows, self.opened, self.cache

    def be_followed(self) -> None:
        """It dies, and its successor tries its memory before it takes the pool over."""
        self.die()
        self._turn()
        self._start()

    def _start(self) -> None:
        life = next(self._lives)
        self.rows = rows_in(self._folder, life)
        self._steer(self.rows._landings, "_stamps")
        self._turn()
        with self.rows.trial(2):
            for block in range(2):
                self._write(block, b"a trial")
        self._turn()
        self.rows.declare_ready()
        self._turn()
        self.opened = index_in(self._folder, life)
        self._steer(self.opened.index, "_stamps", "_seals", "_ages", "_keys")
        self.cache = HostCache(SingleBlockPool("host", NUM_BLOCKS), self.opened.index)
        self.cache.adopt(self.opened.held, priority=9)

    def _write(self, block: int, of: bytes) -> None:
        half = ROW_BYTES // 2
        for layer in LAYERS:
            for part in (slice(0, half), slice(half, ROW_BYTES)):
                self._turn()
                bytes_ = torch.from_numpy(content(of, layer)[part].copy())
                self.rows.rows[layer][block, part] = bytes_
        self._turn()

    def _steer(self, table: Any, *columns: str) -> None:
        for name in columns:
            setattr(table, name, Steered(getattr(table, name), self._turn))
        if "_keys" in columns:
            # Entries are stored one by one, but sealed at once.
            keys = table._keys._memory
            table._seal = lambda blocks, stamps: _seals(keys[blocks], blocks, stamps)
