"""The free blocks of host memory."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv.errors import BlockNotTakenError, OutOfBlocksError
from kv.single_blocks import SingleBlockPool


def test_taking_more_than_is_free_takes_nothing() -> None:
    """A pool that cannot give all of what is asked gives none of it, and says what it has."""
    pool = SingleBlockPool("host", 4)
    pool.take(3)

    with pytest.raises(OutOfBlocksError, match="host pool: 2 blocks needed, 1 free"):
        pool.take(2)

    assert pool.num_free == 1


@pytest.mark.parametrize("blocks", [[0, 0], [1], [-1], [4]], ids=str)
def test_a_block_that_is_not_taken_cannot_be_given_back(blocks: list[int]) -> None:
    """Giving a block back twice, or one that was never taken, is refused and changes nothing."""
    pool = SingleBlockPool("host", 4)
    pool.take(1)

    with pytest.raises(BlockNotTakenError):
        pool.give(blocks)

    assert pool.num_free == 3


@given(st.lists(st.one_of(st.integers(0, 8), st.none()), max_size=40))
def test_every_block_is_free_or_with_one_taker(actions: list[int | None]) -> None:
    """Whatever is taken (a number) and given back (none), no block has two takers or gets lost."""
    pool, taken = SingleBlockPool("host", 16), list[list[int]]()
    for num_blocks in actions:
        if num_blocks is None:
            if taken:
                pool.give(taken.pop(0))
        elif num_blocks <= pool.num_free:
            taken.append(pool.take(num_blocks))
        held = [block for blocks in taken for block in blocks]
        assert len(set(held)) == len(held)
        assert pool.num_free == 16 - len(held)
