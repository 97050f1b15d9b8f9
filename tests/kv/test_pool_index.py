"""What a successor finds in a pool: whole blocks with the right bytes, whenever the crash came."""

from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from kv.host_cache import HostCache
from kv.pool_index import Landings, PoolIndex, index_bytes, landing_bytes
from kv.single_blocks import SingleBlockPool

NUM_BLOCKS, NUM_WORKERS, KEY_BYTES, BLOCK_BYTES = 6, 2, 32, 4


def key(number: int) -> bytes:
    return sha256(b"%d" % number).digest()


class Tables:
    """The memory of a pool, which stays when its processes go."""

    def __init__(self, num_workers: int = 1) -> None:
        self.index_memory = np.zeros(index_bytes(NUM_BLOCKS, KEY_BYTES), dtype=np.uint8)
        self.landing_memory = [
            np.zeros(landing_bytes(NUM_BLOCKS), dtype=np.uint8) for _ in range(num_workers)
        ]

    def index(self) -> PoolIndex:
        return PoolIndex(self.index_memory, NUM_BLOCKS, KEY_BYTES)

    def landings(self) -> list[Landings]:
        return [Landings(memory) for memory in self.landing_memory]

    def held(self) -> list[tuple[int, bytes]]:
        return self.index().take_over([memory.view("<u8") for memory in self.landing_memory])


def test_a_block_is_found_once_every_worker_has_landed_its_part() -> None:
    """Entered is not enough, and neither is one worker of two."""
    tables = Tables(num_workers=2)
    index, [first, second] = tables.index(), tables.landings()
    index.enter([3, 4], [key(1), key(2)], stamp=100)
    first.note([3, 4], 100)
    second.note([4], 100)

    assert tables.held() == [(4, key(2))]


def test_a_block_that_is_to_be_overwritten_is_not_found() -> None:
    """From the moment its next content is entered, be it under a key or none."""
    tables = Tables()
    index, [landings] = tables.index(), tables.landings()
    index.enter([1, 2, 3], [key(1), key(2), key(3)], stamp=100)
    landings.note([1, 2, 3], 100)

    index.enter([1, 2], [key(4), None], stamp=101)

    assert tables.held() == [(3, key(3))]


def test_what_was_struck_is_not_found_when_its_copy_lands_later() -> None:
    """Such as KV that turned out wrong while it was on its way."""
    tables = Tables()
    index, [landings] = tables.index(), tables.landings()
    index.enter([1, 2], [key(1), key(2)], stamp=100)

    index.strike([1])
    landings.note([1, 2], 100)

    assert tables.held() == [(2, key(2))]


def test_a_copy_that_lands_late_does_not_count_for_a_later_one() -> None:
    """A block's stamp must be that of the copy which its entry speaks of."""
    tables = Tables()
    index, [landings] = tables.index(), tables.landings()
    index.enter([1], [key(1)], stamp=100)
    index.enter([1], [key(2)], stamp=101)

    landings.note([1], 100)

    assert tables.held() == []


def test_what_was_used_last_comes_last() -> None:
    """As in the memory of the engine that died: of blocks used together the first is youngest."""
    tables = Tables()
    index, [landings] = tables.index(), tables.landings()
    index.enter([1, 2, 3], [key(1), key(2), key(3)], stamp=100)
    landings.note([1, 2, 3], 100)

    index.age([2, 1], newest=120)

    assert [block for block, _ in tables.held()] == [3, 1, 2]


def test_of_two_blocks_with_one_key_one_is_found() -> None:
    """The younger one; the other is nobody's, also when that one is struck later."""
    tables = Tables()
    index, [landings] = tables.index(), tables.landings()
    for block in (1, 2):
        index.enter([block], [key(1)], stamp=100 + block)
        landings.note([block], 100 + block)

    assert tables.held() == [(2, key(1))]
    tables.index().strike([2])
    assert tables.held() == []


def test_stamps_go_on_where_the_last_ones_ended() -> None:
    """Also where the clock has been set back since: no stamp is given twice."""
    tables = Tables()
    late = 1 << 62
    tables.index().enter([1], [key(1)], stamp=late)

    assert tables.index().first_stamp > late


@given(byte=st.integers(0, index_bytes(NUM_BLOCKS, KEY_BYTES) - 1), bit=st.integers(0, 7))
def test_a_damaged_entry_is_not_found(byte: int, bit: int) -> None:
    """Whichever bit of the table is wrong: no block is found under a key that it was not given."""
    tables = Tables()
    index, [landings] = tables.index(), tables.landings()
    blocks = list(range(NUM_BLOCKS))
    index.enter(blocks, [key(block) for block in blocks], stamp=100)
    landings.note(blocks, 100)

    tables.index_memory[byte] ^= 1 << bit

    found = dict(tables.held())
    assert len(found) >= NUM_BLOCKS - 1
    assert all(found[block] == key(block) for block in found)


class CrashError(Exception):
    """The process was killed here."""


@dataclass
class Fuse:
    """How many more elements may be stored before the crash; none is set while it is None."""

    num_left: int | None = None


class Column:
    """A column of a table whose process may be killed in the middle of a store."""

    def __init__(self, column: np.ndarray, fuse: Fuse) -> None:
        self._column, self._fuse = column, fuse

    def __getitem__(self, blocks: Any) -> Any:
        return self._column[blocks]

    def __setitem__(self, blocks: Any, values: Any) -> None:
        blocks = list(blocks)
        values = np.broadcast_to(values, self._column[blocks].shape)
        for block, value in zip(blocks, values, strict=True):
            if self._fuse.num_left == 0:
                raise CrashError
            if self._fuse.num_left is not None:
                self._fuse.num_left -= 1
            self._column[block] = value


@dataclass
class Copy:
    """A copy on its way, worker by worker, in two halves each."""

    blocks: list[int]
    keys: list[bytes | None]
    stamp: int


class CrashingEngines(RuleBasedStateMachine):
    """Engines that follow each other on one pool, each of them killed at any moment.

    What every block holds is known by its bytes: the first ones of its key. Copies land in order,
    as those into one block do.
    """

    @initialize()
    def begin(self) -> None:
        self.tables = Tables(NUM_WORKERS)
        self.rows = np.zeros((NUM_WORKERS, NUM_BLOCKS, BLOCK_BYTES), dtype=np.uint8)
        self.forgotten: set[bytes] = set()
        self.start()

    def start(self) -> None:
        self.fuse = Fuse()
        index = self.tables.index()
        held = index.take_over([memory.view("<u8") for memory in self.tables.landing_memory])
        self.check(held)
        landings = self.tables.landings()
        for table in (index, *landings):
            for name in ("_stamps", "_seals", "_ages", "_keys"):
                if hasattr(table, name):
                    setattr(table, name, Column(getattr(table, name), self.fuse))
        # Reading all at once is not what may be cut short.
        index._seal = PoolIndex._seal.__get__(index)  # type: ignore[method-assign]
        self.landings = landings
        self.cache = HostCache(SingleBlockPool("host", NUM_BLOCKS), index)
        self.cache.adopt(held, priority=9)
        self.copies: list[Copy] = []
        self.landed = {key: block for block, key in held}

    def check(self, held: list[tuple[int, bytes]]) -> None:
        blocks, keys = [block for block, _ in held], [key for _, key in held]
        assert len(set(blocks)) == len(blocks)
        assert len(set(keys)) == len(keys)
        assert self.forgotten.isdisjoint(keys)
        for block, held_key in held:
            for worker in range(NUM_WORKERS):
                assert self.rows[worker, block].tobytes() == held_key[:BLOCK_BYTES]

    @rule(numbers=st.lists(st.integers(0, 9), min_size=1, max_size=3, unique=True))
    def put(self, numbers: list[int]) -> None:
        """Some are found already; the last is new each time, and for nobody else to find."""
        keys: list[bytes | None] = [key(n) for n in numbers if self.cache.find(key(n)) is None]
        if len(keys) + 1 > self.cache.num_available:
            return
        self.forgotten.difference_update(key(number) for number in numbers)
        blocks = self.cache.put([*keys, None])
        self.copies.append(Copy(blocks, [*keys, None], self.cache.last_stamp))
        self.cache.spare(blocks, 0)

    @rule(number=st.integers(0, 9))
    def use(self, number: int) -> None:
        if (block := self.cache.find(key(number))) is not None:
            self.cache.use([block], 1)

    @rule(number=st.integers(0, 9))
    def forget(self, number: int) -> None:
        if (block := self.cache.find(key(number))) is not None:
            self.cache.forget([block])
            self.forgotten.add(key(number))

    @precondition(lambda self: self.copies)
    @rule(is_failing=st.booleans())
    def land(self, is_failing: bool) -> None:  # noqa: FBT001  (drawn)
        copy = self.copies.pop(0)
        for worker in range(NUM_WORKERS):
            self.write(copy, worker, slice(0, 2))
        if is_failing:
            lost = [(k, b) for k, b in zip(copy.keys, copy.blocks, strict=True) if self.finds(k, b)]
            self.cache.forget([block for _, block in lost])
            self.forgotten.update(one for one, _ in lost if one is not None)
            return
        for worker in range(NUM_WORKERS):
            self.write(copy, worker, slice(0, BLOCK_BYTES))
            self.landings[worker].note(copy.blocks, copy.stamp)
        for block, one in zip(copy.blocks, copy.keys, strict=True):
            if self.finds(one, block):
                assert one is not None
                self.landed[one] = block

    def finds(self, one: bytes | None, block: int) -> bool:
        return one is not None and self.cache.find(one) == block

    def write(self, copy: Copy, worker: int, part: slice) -> None:
        for block, one in zip(copy.blocks, copy.keys, strict=True):
            content = np.frombuffer((one or b"\xff" * KEY_BYTES)[:BLOCK_BYTES], dtype=np.uint8)
            self.rows[worker, block, part] = content[part]

    @rule()
    def crash_between_stores(self) -> None:
        """All that had landed and could still be found is found again."""
        pending = {block for copy in self.copies for block in copy.blocks}
        expected = {
            one
            for one, block in self.landed.items()
            if self.cache.find(one) == block and block not in pending
        }
        self.start()
        assert self.landed.keys() >= expected

    @precondition(lambda self: self.copies)
    @rule(worker=st.integers(0, NUM_WORKERS - 1))
    def crash_in_a_copy(self, worker: int) -> None:
        """What was being written is not found, nor is what it was written over."""
        self.write(self.copies[0], worker, slice(0, 2))
        self.start()

    @rule(num_stores=st.integers(0, 20), what=st.sampled_from(["put", "forget", "use", "land"]))
    def crash_in_a_store(self, num_stores: int, what: str) -> None:
        """Wherever the tables are half written, nothing wrong is found."""
        self.fuse.num_left = num_stores
        try:
            if what == "put":
                self.put([1, 2, 3])
            elif what == "land" and self.copies:
                self.land(is_failing=False)
            elif what == "use":
                self.use(1)
            else:
                self.forget(1)
        except CrashError:
            pass
        self.start()

    @invariant()
    def nothing_wrong_would_be_found(self) -> None:
        """At each moment; looking does not change what is there."""
        if hasattr(self, "tables"):
            looked = Tables(NUM_WORKERS)
            looked.index_memory[:] = self.tables.index_memory
            for copy, memory in zip(looked.landing_memory, self.tables.landing_memory, strict=True):
                copy[:] = memory
            self.check(looked.held())


TestCrashingEngines = CrashingEngines.TestCase
TestCrashingEngines.settings = settings(max_examples=60, stateful_step_count=40)
