"""The blocks of one memory, handed out as long runs."""

from itertools import pairwise

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from kv.block_groups import BlockGroupPool
from kv.errors import BlockNotTakenError, OutOfBlocksError
from kv.runs import runs_of


def test_taking_more_than_is_free_takes_nothing() -> None:
    """A pool that cannot give all of what is asked gives none of it, and says what it has."""
    pool = BlockGroupPool("host", 4)
    pool.take(3)

    with pytest.raises(OutOfBlocksError, match="host pool: 2 blocks needed, 1 free"):
        pool.take(2)

    assert pool.num_free == 1


@pytest.mark.parametrize("blocks", [[0, 0], [1], [3], [-1], [400]], ids=str)
def test_a_block_that_is_not_taken_cannot_be_given_back(blocks: list[int]) -> None:
    """Giving a block back twice, or one that was never taken, is refused and changes nothing.

    A tail is not taken either: it is free, for whoever needs it more than its owner.
    """
    pool = BlockGroupPool("host", 400)
    pool.take(1)

    with pytest.raises(BlockNotTakenError):
        pool.give([0, *blocks] if blocks != [0, 0] else blocks)

    assert pool.num_free == 399


def test_one_who_grows_gets_what_is_behind_their_last_block() -> None:
    """Whoever grows side by side with others, block by block, still has one run each."""
    pool = BlockGroupPool("device", 400)
    tables = [pool.take(5), pool.take(5), pool.take(5)]

    for _ in range(30):
        for table in tables:
            table.extend(pool.take(1, after=table[-1]))

    assert [len(list(runs_of(table))) for table in tables] == [1, 1, 1]


def test_a_tail_is_given_to_others_before_they_go_without() -> None:
    """Every block that is free can be taken by anybody, kept for growth or not."""
    pool = BlockGroupPool("device", 100)
    owner = pool.take(10)

    others = pool.take(90)

    assert sorted(owner + others) == list(range(100))


def test_tails_are_long_where_memory_is_plenty_and_shrink_under_pressure() -> None:
    """60 blocks are kept behind a lone owner of much memory, fewer and fewer as owners come."""
    pool = BlockGroupPool("device", 1000)

    starts = [pool.take(10)[0] for _ in range(28)]
    gaps = [after - before - 10 for before, after in pairwise(starts)]

    assert gaps == sorted(gaps, reverse=True)
    assert (gaps[0], gaps[-1]) == (60, 8)


def test_a_tail_ends_with_its_owner() -> None:
    """What was kept behind a block joins its neighbours when that block is given back."""
    pool = BlockGroupPool("device", 100)
    first, second = pool.take(10), pool.take(10)

    pool.give(first)

    assert len(list(runs_of(pool.take(second[0])))) == 1


def test_blocks_can_be_withdrawn_from_the_midst_of_groups_and_tails() -> None:
    """A caller who needs certain blocks gets them, whomever they are kept for."""
    pool = BlockGroupPool("device", 100)
    owner = pool.take(10)

    pool.withdraw([owner[-1] + 2, 99])

    assert pool.num_free == 88
    assert set(pool.take(88)).isdisjoint([*owner, owner[-1] + 2, 99])


class PoolMachine(RuleBasedStateMachine):
    """Takers who come, grow, share and leave, beside a plain set of free blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockGroupPool("device", 64)
        self.free = set(range(64))
        self.tables: list[list[int]] = []

    @rule(num_blocks=st.integers(1, 30))
    def come(self, num_blocks: int) -> None:
        self.tables.append([])
        self._take(self.tables[-1], num_blocks, after=None)

    @precondition(lambda self: any(self.tables))
    @rule(data=st.data(), num_blocks=st.integers(1, 9))
    def grow(self, data: st.DataObject, num_blocks: int) -> None:
        table = data.draw(st.sampled_from([table for table in self.tables if table]))
        self._take(table, num_blocks, after=table[-1])

    @precondition(lambda self: self.tables)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        table = self.tables.pop(data.draw(st.integers(0, len(self.tables) - 1)))
        self.pool.give(reversed(table))
        self.free.update(table)

    @precondition(lambda self: any(self.tables))
    @rule(data=st.data())
    def give_a_part(self, data: st.DataObject) -> None:
        table = data.draw(st.sampled_from([table for table in self.tables if table]))
        first = data.draw(st.integers(0, len(table) - 1))
        end = data.draw(st.integers(first + 1, len(table)))
        self.pool.give(table[first:end])
        self.free.update(table[first:end])
        del table[first:end]

    @precondition(lambda self: self.free)
    @rule(data=st.data())
    def withdraw(self, data: st.DataObject) -> None:
        blocks = data.draw(st.lists(st.sampled_from(sorted(self.free)), unique=True, max_size=9))
        self.pool.withdraw(blocks)
        self.free.difference_update(blocks)
        self.tables.append(blocks)

    @invariant()
    def all_that_is_free_is_counted(self) -> None:
        assert self.pool.num_free == len(self.free)

    def teardown(self) -> None:
        """Nothing is lost, and all neighbours are merged again."""
        for table in self.tables:
            self.pool.give(table)
        assert self.pool.take(64) == list(range(64))

    def _take(self, table: list[int], num_blocks: int, after: int | None) -> None:
        """Succeeds exactly if as many are free, and gives only free blocks."""
        if num_blocks > len(self.free):
            with pytest.raises(OutOfBlocksError):
                self.pool.take(num_blocks, after=after)
            return
        taken = self.pool.take(num_blocks, after=after)
        assert len(taken) == len(set(taken)) == num_blocks
        assert self.free.issuperset(taken)
        self.free.difference_update(taken)
        table += taken


TestPoolMachine = PoolMachine.TestCase
