"""Blocks that lie side by side, in one pool or in two."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv.runs import Descriptor, describe, one_by_one, runs_of


def test_neighbours_are_found_in_any_order() -> None:
    """Runs come lowest first, whatever the order of the blocks."""
    assert list(runs_of([9, 3, 4, 2, 8])) == [(2, 5), (8, 10)]
    assert list(runs_of([])) == []


@given(st.sets(st.integers(0, 40)))
def test_runs_hold_every_block_once_and_never_touch(blocks: set[int]) -> None:
    """Runs are exactly the blocks, and no two could be one."""
    runs = list(runs_of(blocks))

    assert [block for start, end in runs for block in range(start, end)] == sorted(blocks)
    assert all(end < start for (_, end), (start, _) in pairwise(runs))


def test_what_lies_side_by_side_on_both_sides_is_one_copy() -> None:
    """A gap on either side begins a new copy; the order of the pairs does not matter."""
    assert describe([12, 10, 11, 20, 21], [32, 30, 31, 40, 50]) == [
        Descriptor(device_start=10, host_start=30, num_blocks=3),
        Descriptor(device_start=20, host_start=40, num_blocks=1),
        Descriptor(device_start=21, host_start=50, num_blocks=1),
    ]


def test_without_runs_every_block_is_a_copy() -> None:
    """Also where neighbours stay neighbours."""
    assert one_by_one([4, 5], [0, 1]) == [Descriptor(4, 0, 1), Descriptor(5, 1, 1)]


def test_two_requests_may_copy_the_same_blocks_out() -> None:
    """Blocks that are sources twice still move in one copy per target run."""
    copies = describe([5, 6, 7, 5, 6], [10, 11, 12, 20, 21])

    assert copies == [Descriptor(5, 10, 3), Descriptor(5, 20, 2)]


def test_sides_of_different_length_are_refused() -> None:
    """A block without a partner is a mistake, not a copy."""
    with pytest.raises(ValueError, match="shorter"):
        describe([1, 2], [1])


@given(st.sets(st.tuples(st.integers(0, 12), st.integers(0, 12))))
def test_copies_move_exactly_the_pairs_and_are_fewest(pairs: set[tuple[int, int]]) -> None:
    """Every pair is moved once, and a copy begins only where no pair comes before."""
    device_blocks, host_blocks = [device for device, _ in pairs], [host for _, host in pairs]

    copies = describe(device_blocks, host_blocks)

    moved = [
        (copy.device_start + i, copy.host_start + i)
        for copy in copies
        for i in range(copy.num_blocks)
    ]
    assert sorted(moved) == sorted(pairs)
    begins = [(d, h) for d, h in pairs if (d - 1, h - 1) not in pairs]
    assert sorted((copy.device_start, copy.host_start) for copy in copies) == sorted(begins)
