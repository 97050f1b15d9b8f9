"""Numbers that express an order and change only where the order does."""

from itertools import pairwise
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from scheduler.policies.numbering import END, MIDDLE, renumbered

SMALL_END, SMALL_STRIDE = 64, 4  # for up to 16 things; room runs out all the time


def rises(numbers: list[int]) -> bool:
    return all(low < high for low, high in pairwise(numbers))


def test_a_change_at_the_front_leaves_all_others_alone() -> None:
    """Who leaves the front takes its number along, and who comes there gets one before all."""
    first, second, third = renumbered([MIDDLE] * 3)

    assert renumbered([second, third]) == [second, third]
    newest, *others = renumbered([third, first, second, third])
    assert others == [first, second, third]
    assert newest < first


def test_whoever_moves_gets_a_number_between_its_neighbours() -> None:
    """The others keep theirs, though the mover's is in nobody's way where it was."""
    first, second, third, fourth = renumbered([MIDDLE] * 4)
    middle = (third + fourth) // 2

    assert renumbered([second, third, first, fourth]) == [second, third, middle, fourth]
    assert renumbered([fourth, first, second, third])[1:] == [first, second, third]


def test_a_crowded_place_is_cleared_at_the_cost_of_a_neighbour_alone() -> None:
    """Where there is no number left between two, one of them gives way."""
    crowd = [MIDDLE - 100, MIDDLE, MIDDLE + 1, MIDDLE + 102, MIDDLE + 202]
    from_behind = MIDDLE + 302

    after = renumbered([*crowd[:2], from_behind, *crowd[2:]])

    assert after == [MIDDLE - 100, MIDDLE - 67, MIDDLE - 33, MIDDLE + 1, MIDDLE + 102, MIDDLE + 202]


@given(st.lists(st.integers(0, END - 1), max_size=50))
def test_numbers_rise_whatever_they_were_before(before: list[int]) -> None:
    """From 0 to the end, and none changes where they rose already."""
    after = renumbered(before)

    assert rises(after)
    assert len(after) == len(before)
    assert all(0 <= number < END for number in after)
    if rises(before):
        assert after == before


@given(st.lists(st.lists(st.integers(0, SMALL_END - 1), max_size=16), max_size=5))
def test_there_are_always_enough_numbers(orders: list[list[int]]) -> None:
    """Also where hardly more than needed exist: then all begin anew."""
    for before in orders:
        after = renumbered(before, end=SMALL_END, stride=SMALL_STRIDE)

        assert rises(after)
        assert all(0 <= number < SMALL_END for number in after)


@given(st.integers(0, 2**32), st.integers(2, 12))
def test_an_order_keeps_its_numbers_through_random_moves(seed: int, num: int) -> None:
    """Things that move about, one at a time: at most that one is renumbered while there is room."""
    random = Random(seed)
    numbers = renumbered([MIDDLE] * num)
    for _ in range(10):
        moved = numbers.pop(random.randrange(num))
        numbers.insert(random.randrange(num), moved)

        after = renumbered(numbers)

        assert sum(new != old for new, old in zip(after, numbers, strict=True)) <= 1
        numbers = after
