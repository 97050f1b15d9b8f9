"""Free groups, found by place and by size."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv.free_groups import BlockGroup, FreeGroups
from kv.runs import runs_of

NUM_BLOCKS = 24


def groups_of(*groups: tuple[int, int], num_blocks: int = NUM_BLOCKS) -> FreeGroups:
    made = FreeGroups(num_blocks)
    for start, end in groups:
        made.add(start, end)
    return made


def test_the_smallest_group_that_fits_is_chosen() -> None:
    """A request is put where it leaves the least behind."""
    groups = groups_of((0, 9), (10, 14), (16, 19))

    assert groups.best_fit(4) == BlockGroup(10, 14)
    assert groups.best_fit(5) == BlockGroup(0, 9)


def test_the_largest_group_is_chosen_where_none_fits() -> None:
    """A request that must be split is split into as few parts as possible."""
    assert groups_of((0, 3), (10, 16)).best_fit(20) == BlockGroup(10, 16)


@pytest.mark.parametrize(("num_blocks", "start"), [(1500, 5000), (2500, 0), (9000, 0)])
def test_groups_of_thousands_are_told_apart(num_blocks: int, start: int) -> None:
    """The smallest that fits, or the largest, is found among very long groups too."""
    groups = groups_of((0, 4000), (5000, 7000), num_blocks=8000)

    assert groups.best_fit(num_blocks).start == start


def test_free_neighbours_become_one_group() -> None:
    """Blocks that close a gap join the groups on both sides of it."""
    groups = groups_of((0, 4), (6, 9), (4, 6))

    assert groups.best_fit(1) == BlockGroup(0, 9)


def test_a_group_splits_around_what_is_cut_out() -> None:
    """What is left on each side is a group of its own."""
    groups = groups_of((2, 12))

    groups.cut(5, 6)

    assert (groups.end_of_group_at(2), groups.end_of_group_at(6)) == (5, 12)
    assert groups.end_of_group_at(5) == 5


@given(st.lists(st.tuples(st.integers(0, NUM_BLOCKS - 1), st.integers(1, 6)), max_size=60))
def test_groups_are_the_runs_of_the_free_blocks(actions: list[tuple[int, int]]) -> None:
    """After any adding and cutting, groups are where a plain set of blocks has its runs."""
    groups, model = FreeGroups(NUM_BLOCKS), set[int]()
    for start, size in actions:
        end = min(start + size, NUM_BLOCKS)
        blocks = set(range(start, end))
        assert groups.has_any(start, end) == bool(model & blocks)
        if not model & blocks:
            groups.add(start, end)
            model |= blocks
        elif blocks <= model:
            groups.cut(start, end)
            model -= blocks
        ends = dict(runs_of(model))
        assert groups.num_blocks == len(model)
        assert all(groups.end_of_group_at(block) == ends.get(block, block) for block in range(24))
        sizes = [end - start for start, end in ends.items()]
        for wanted in range(1, NUM_BLOCKS) if sizes else ():
            fit = min((size for size in sizes if size >= wanted), default=max(sizes))
            assert groups.best_fit(wanted).size == fit
