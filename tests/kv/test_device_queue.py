"""The device's free blocks, beside a plain model of vLLM's queue."""

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from kv.device_queue import DeviceBlockQueue
from kv.errors import OutOfBlocksError
from tests.kv.lru_queue import LRUQueue

NUM_BLOCKS = 48


def test_blank_blocks_go_before_cached_ones() -> None:
    """While blank blocks are enough, nothing that is cached is overwritten."""
    queue = DeviceBlockQueue(8, window=0)
    queue.take(8)
    queue.give_cached([0, 1, 2])
    queue.give_blank([5, 7])

    assert sorted(queue.take(2)) == [5, 7]


def test_what_was_unused_for_longest_goes_first() -> None:
    """Without a window, cached blocks leave in the order they came."""
    queue = DeviceBlockQueue(6, window=0)
    queue.take(6)
    queue.give_cached([4, 0, 2, 5])

    assert [queue.take(1), queue.take(1), queue.take(1)] == [[4], [0], [2]]


def test_a_window_lets_runs_form_out_of_turn() -> None:
    """Within the window, a long run is better than an old block."""
    queue = DeviceBlockQueue(8, window=4)
    queue.take(8)
    queue.give_cached([0, 4, 5, 6, 2])

    assert queue.take(3) == [4, 5, 6]


def test_a_cached_block_that_is_found_again_is_not_handed_out() -> None:
    """Blocks found in the window or behind it stay with whoever found them."""
    queue = DeviceBlockQueue(8, window=2)
    queue.take(8)
    queue.give_cached([3, 4, 5, 6])
    queue.take(1)

    queue.find(4)
    queue.find(6)

    assert (queue.num_free, queue.take(1)) == (1, [5])


class QueueMachine(RuleBasedStateMachine):
    """Requests that come, grow, find cached blocks and leave, on both queues.

    The model of vLLM's queue is told which blocks ours gave; its order then says how old they were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.queue, self.window = DeviceBlockQueue(NUM_BLOCKS, 0), 0
        self.model = LRUQueue(NUM_BLOCKS)
        self.cached: set[int] = set()
        self.tables: list[list[int]] = []

    @initialize(window=st.sampled_from([0, 1, 6, 20, NUM_BLOCKS]))
    def choose_window(self, window: int) -> None:
        self.queue, self.window = DeviceBlockQueue(NUM_BLOCKS, window), window

    @rule(num_blocks=st.integers(1, 20))
    def come(self, num_blocks: int) -> None:
        self.tables.append([])
        self._take(self.tables[-1], num_blocks, after=None)

    @precondition(lambda self: any(self.tables))
    @rule(data=st.data(), num_blocks=st.integers(1, 4))
    def grow(self, data: st.DataObject, num_blocks: int) -> None:
        table = data.draw(st.sampled_from([table for table in self.tables if table]))
        self._take(table, num_blocks, after=table[-1])

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        num_full = data.draw(st.integers(0, len(table)))
        blank, cached = table[num_full:][::-1], table[:num_full][::-1]
        for queue in (self.queue, self.model):
            queue.give_blank(blank)
            queue.give_cached(cached)
        self.cached.update(cached)

    @precondition(lambda self: self.cached)
    @rule(data=st.data())
    def find_cached(self, data: st.DataObject) -> None:
        found = data.draw(st.lists(st.sampled_from(sorted(self.cached)), unique=True, max_size=9))
        for block in found:
            self.queue.find(block)
            self.model.find(block)
        self.cached.difference_update(found)
        self.tables.append(found)

    @invariant()
    def as_much_is_free_as_with_vllms_queue(self) -> None:
        assert self.queue.num_free == self.model.num_free

    def teardown(self) -> None:
        """All that is free can be taken, and no block is there twice."""
        num_free = self.queue.num_free
        assert set(self.queue.take(num_free)) == set(self.model.take(num_free))

    def _take(self, table: list[int], num_blocks: int, after: int | None) -> None:
        """Succeeds exactly where vLLM's queue would; passes over no more than the window."""
        if num_blocks > self.model.num_free:
            with pytest.raises(OutOfBlocksError):
                self.queue.take(num_blocks, after=after)
            return
        taken = self.queue.take(num_blocks, after=after)
        assert len(taken) == len(set(taken)) == num_blocks
        oldest_first = [block for block in self.model.order if block in self.cached]
        youngest = max((oldest_first.index(block) for block in self.cached & {*taken}), default=0)
        assert len({*oldest_first[:youngest]} - {*taken}) <= self.window
        if not self.window and self.cached & {*taken}:
            assert {*taken} == {*self.model.order} - {*list(self.model.order)[num_blocks:]}
        for block in taken:
            self.model.find(block)
        self.cached.difference_update(taken)
        table += taken


TestQueueMachine = QueueMachine.TestCase
