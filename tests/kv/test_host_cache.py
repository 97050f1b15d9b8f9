"""What host memory keeps, what it lets go when room is needed, and in which order."""

from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kv.block_groups import BlockGroupPool
from kv.errors import OutOfBlocksError
from kv.host_cache import HostCache, Key
from kv.single_blocks import SingleBlockPool

NUM_BLOCKS = 8
NUM_KEYS = 12


def make_cache(num_blocks: int = NUM_BLOCKS) -> tuple[HostCache, SingleBlockPool]:
    pool = SingleBlockPool("host", num_blocks)
    return HostCache(pool), pool


def put_spare(cache: HostCache, keys: list[Key | None], *, priority: int = 0) -> list[int]:
    blocks = cache.put(keys)
    cache.spare(blocks, priority)
    return blocks


def test_what_is_put_is_found_by_its_key() -> None:
    """A block is found under its own key and no other, also when nobody needs it any more."""
    cache, _ = make_cache()
    [first, second] = cache.put(["a", "b"])

    cache.spare([first], 0)

    assert (cache.find("a"), cache.find("b"), cache.find("c")) == (first, second, None)
    assert sorted(cache.held()) == sorted([first, second])
    assert (cache.num_needed, cache.num_available) == (1, NUM_BLOCKS - 1)


def test_blocks_that_are_needed_are_never_evicted() -> None:
    """If only needed blocks could make room, the put is refused and changes nothing."""
    cache, pool = make_cache(4)
    cache.put(["a", "b", "c"])
    [spare] = put_spare(cache, ["d"])

    with pytest.raises(OutOfBlocksError, match="host pool: 2 blocks needed, 1 free"):
        cache.put(["e", "f"])

    assert (cache.find("d"), cache.find("e"), pool.num_free) == (spare, None, 0)
    assert cache.put(["e"]) == [spare]
    assert cache.find("d") is None


def test_the_worst_priority_goes_first_and_then_the_oldest() -> None:
    """A high number goes before a low one; within a priority, what was unused for longest."""
    cache, _ = make_cache(4)
    put_spare(cache, ["old"], priority=1)
    put_spare(cache, ["best"], priority=0)
    put_spare(cache, ["new"], priority=1)
    put_spare(cache, ["worst"], priority=2)

    gone = []
    for number in range(4):
        cache.put([number])
        gone += [key for key in ("old", "best", "new", "worst") if cache.find(key) is None]

    assert list(dict.fromkeys(gone)) == ["worst", "old", "new", "best"]
    assert cache.num_evicted == 4


def test_the_last_of_the_blocks_used_together_goes_first() -> None:
    """A block is of no use without those before it, so they stay longer."""
    cache, _ = make_cache(3)
    put_spare(cache, ["a", "b", "c"])

    cache.put(["d"])

    assert [cache.find(key) is not None for key in "abc"] == [True, True, False]


def test_using_blocks_makes_them_the_youngest_and_of_the_users_priority() -> None:
    """What is used again stays longer than what was not, and ranks as its last user does."""
    cache, _ = make_cache(3)
    [first] = put_spare(cache, ["a"])
    put_spare(cache, ["b"])
    [third] = put_spare(cache, ["c"])

    cache.use([first], 0)
    cache.use([third], 5)
    cache.put(["d", "e"])

    assert [cache.find(key) is not None for key in "abc"] == [True, False, False]


def test_what_a_predecessor_has_left_is_found_and_goes_oldest_first() -> None:
    """Its blocks are taken, the others free; it is spare from the beginning, and not recent."""
    cache, pool = make_cache(4)

    cache.adopt([(2, "old"), (0, "new")], priority=0)

    assert (cache.find("old"), cache.find("new")) == (2, 0)
    assert (pool.num_free, cache.num_needed, cache.recent(4)) == (2, 0, [])
    assert sorted(cache.put(["a", "b"])) == [1, 3]
    assert cache.put(["c"]) == [2]
    assert cache.put(["d"]) == [0]


def test_free_blocks_are_taken_before_anything_is_evicted() -> None:
    """Only what is missing is evicted, none of it early."""
    cache, _ = make_cache(4)
    put_spare(cache, ["a", "b"])

    cache.put(["c", "d"])
    assert cache.num_evicted == 0

    cache.put(["e"])
    assert (cache.num_evicted, len(cache.held())) == (1, 4)


def test_what_two_need_stays_until_both_are_done() -> None:
    """A block is needed by as many as said so."""
    cache, _ = make_cache(1)
    blocks = cache.put(["a"])
    cache.need(blocks)

    cache.spare(blocks, 0)
    with pytest.raises(OutOfBlocksError):
        cache.put(["b"])
    cache.spare(blocks, 0)

    assert cache.put(["b"]) == blocks


def test_what_has_no_key_is_free_once_nobody_needs_it() -> None:
    """Nobody else could find such a block, so it is not kept."""
    cache, pool = make_cache()
    blocks = cache.put([None, "a"])

    cache.spare(blocks, 0)

    assert pool.num_free == NUM_BLOCKS - 1
    assert cache.held() == [blocks[1]]


def test_a_forgotten_block_is_found_no_more_and_freed_by_its_last_need() -> None:
    """Whoever still needs it has it; unneeded ones are free at once."""
    cache, pool = make_cache()
    needed = cache.put(["a"])
    spare = put_spare(cache, ["b"])

    cache.forget([*needed, *spare, *spare])
    assert (cache.find("a"), cache.find("b"), pool.num_free) == (None, None, NUM_BLOCKS - 1)

    cache.spare(needed, 0)
    assert (pool.num_free, cache.num_available) == (NUM_BLOCKS, NUM_BLOCKS)


def test_a_key_may_be_put_again_after_its_block_went() -> None:
    """Old entries in the order of eviction do not count for the new content."""
    cache, _ = make_cache(2)
    cache.forget(put_spare(cache, ["a"], priority=9))
    put_spare(cache, ["a"], priority=0)
    put_spare(cache, ["b"], priority=1)

    cache.put(["c"])

    assert (cache.find("a") is not None, cache.find("b")) == (True, None)


def test_room_is_counted_that_matters_less() -> None:
    """Free blocks and spare ones of worse priority yield, up to as many as are asked for."""
    cache, _ = make_cache()
    cache.put(["needed"])
    put_spare(cache, ["a", "b"], priority=3)
    put_spare(cache, ["c"], priority=1)

    assert [cache.num_yielding_to(priority, at_most=99) for priority in (0, 1, 2, 3)] == [
        7,
        6,
        6,
        4,
    ]
    assert cache.num_yielding_to(2, at_most=5) == 5
    assert cache.num_yielding_to(2, at_most=2) == 2
    assert (cache.num_evicted, len(cache.held())) == (0, 4)


def test_blocks_are_recent_by_when_they_were_put() -> None:
    """What was put lately is recent as long as it is held, however long ago it was used."""
    cache, _ = make_cache()
    [old] = cache.put(["old"])
    cache.end_generation()
    [young] = put_spare(cache, ["young"])
    [unkeyed] = put_spare(cache, [None])
    cache.end_generation()
    cache.use([old], 0)

    assert cache.recent(0) == []
    assert cache.recent(1) == [young]
    assert sorted(cache.recent(2)) == sorted([old, young])
    assert unkeyed not in cache.recent(9)


def test_a_long_life_leaves_no_trace() -> None:
    """Memory for the order of eviction does not grow with the number of uses."""
    cache, _ = make_cache(2)
    blocks = put_spare(cache, ["a", "b"])
    for _ in range(10_000):
        cache.use(blocks, 0)

    assert len(cache._spares) <= 2 * 2 + 64


@dataclass
class Held:
    """A block of the model, and what is known of it."""

    key: Key | None
    num_needing: int
    priority: int
    age: int


class CacheMachine(RuleBasedStateMachine):
    """The cache against a plain dictionary of blocks."""

    @initialize(has_groups=st.booleans())
    def start(self, *, has_groups: bool) -> None:
        make_pool = BlockGroupPool if has_groups else SingleBlockPool
        self.pool = make_pool("host", NUM_BLOCKS)
        self.cache = HostCache(self.pool)
        self.held: dict[int, Held] = {}
        self.clock = 0
        self.num_evicted = 0

    @rule(
        keys=st.lists(st.one_of(st.none(), st.integers(0, NUM_KEYS - 1)), max_size=4),
        after=st.one_of(st.none(), st.integers(0, NUM_BLOCKS - 1)),
    )
    def put(self, keys: list[int | None], after: int | None) -> None:
        wanted: list[Key | None] = []
        for key in keys:
            if key is None or (key not in wanted and self._with_key(key) is None):
                wanted.append(key)
        if len(wanted) > self._num_available():
            with pytest.raises(OutOfBlocksError):
                self.cache.put(wanted, after=after)
            return
        self._evict(len(wanted) - (NUM_BLOCKS - len(self.held)))
        blocks = self.cache.put(wanted, after=after)
        assert len({*blocks}) == len(wanted)
        assert self.held.keys().isdisjoint(blocks)
        for block, own_key in zip(blocks, wanted, strict=True):
            self.held[block] = Held(own_key, 1, 0, 0)

    @precondition(lambda self: self.held)
    @rule(data=st.data(), priority=st.integers(0, 2))
    def use(self, data: st.DataObject, priority: int) -> None:
        blocks = data.draw(st.lists(st.sampled_from([*self.held]), unique=True))
        self.cache.use(blocks, priority)
        self._use(blocks, priority)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def need(self, data: st.DataObject) -> None:
        blocks = data.draw(st.lists(st.sampled_from([*self.held]), unique=True))
        self.cache.need(blocks)
        for block in blocks:
            self.held[block].num_needing += 1

    @precondition(lambda self: any(one.num_needing for one in self.held.values()))
    @rule(data=st.data(), priority=st.integers(0, 2))
    def spare(self, data: st.DataObject, priority: int) -> None:
        needed = [block for block, one in self.held.items() if one.num_needing]
        blocks = data.draw(st.lists(st.sampled_from(needed), unique=True))
        self.cache.spare(blocks, priority)
        self._use(blocks, priority)
        for block in blocks:
            self.held[block].num_needing -= 1
        self._free_what_nobody_can_find()

    @rule(blocks=st.lists(st.integers(0, NUM_BLOCKS - 1), max_size=3))
    def forget(self, blocks: list[int]) -> None:
        self.cache.forget(blocks)
        for block in blocks:
            if block in self.held:
                self.held[block].key = None
        self._free_what_nobody_can_find()

    @rule(priority=st.integers(-1, 2), at_most=st.integers(0, NUM_BLOCKS))
    def count_yielding(self, priority: int, at_most: int) -> None:
        num_worse = sum(
            not one.num_needing and one.priority > priority for one in self.held.values()
        )
        expected = min(at_most, NUM_BLOCKS - len(self.held) + num_worse)
        assert self.cache.num_yielding_to(priority, at_most=at_most) == expected

    @invariant()
    def the_cache_is_as_the_model_says(self) -> None:
        if not hasattr(self, "held"):
            return
        assert self.pool.num_free == NUM_BLOCKS - len(self.held)
        assert self.cache.num_available == self._num_available()
        assert self.cache.num_needed == NUM_BLOCKS - self._num_available()
        assert self.cache.num_evicted == self.num_evicted
        for key in range(NUM_KEYS):
            assert self.cache.find(key) == self._with_key(key)
        keyed = [block for block, one in self.held.items() if one.key is not None]
        assert sorted(self.cache.held()) == sorted(keyed)
        assert self.cache.recent(0) == sorted(self.held)

    def teardown(self) -> None:
        """Whatever happened, all of memory can be used again."""
        if not hasattr(self, "held"):
            return
        for block, one in self.held.items():
            for _ in range(one.num_needing):
                self.cache.spare([block], 0)
        assert self.cache.num_available == NUM_BLOCKS
        assert len({*self.cache.put([None] * NUM_BLOCKS)}) == NUM_BLOCKS

    def _use(self, blocks: list[int], priority: int) -> None:
        for block in reversed(blocks):
            self.clock += 1
            self.held[block].age, self.held[block].priority = self.clock, priority

    def _evict(self, num_blocks: int) -> None:
        spare = [block for block, one in self.held.items() if not one.num_needing]
        spare.sort(key=lambda block: (-self.held[block].priority, self.held[block].age))
        for block in spare[: max(num_blocks, 0)]:
            del self.held[block]
            self.num_evicted += 1

    def _free_what_nobody_can_find(self) -> None:
        self.held = {
            block: one for block, one in self.held.items() if one.num_needing or one.key is not None
        }

    def _num_available(self) -> int:
        return NUM_BLOCKS - sum(bool(one.num_needing) for one in self.held.values())

    def _with_key(self, key: Key) -> int | None:
        return next((block for block, one in self.held.items() if one.key == key), None)


TestHostCache = CacheMachine.TestCase
TestHostCache.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
