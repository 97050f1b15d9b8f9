"""Priorities change with every update in the same way for everybody who has the seed."""

from itertools import islice, pairwise

import pytest

from ops.bench.priorities import PATTERNS
from scheduler.policies.patterns import NUM_LEVELS

NAMES = [f"c{number}" for number in range(400)]


@pytest.mark.parametrize("name", PATTERNS)
def test_a_pattern_follows_from_seed_update_and_conversation(name: str) -> None:
    """Modes that make another number of steps see the same levels at the same update."""
    one, again = (list(islice(PATTERNS[name]("1", NAMES), 5)) for _ in range(2))
    assert one == again
    assert one != list(islice(PATTERNS[name]("2", NAMES), 5))
    some = list(islice(PATTERNS[name]("1", NAMES[10:20]), 5))
    assert some == [levels[10:20] for levels in one]


@pytest.mark.parametrize("name", PATTERNS)
def test_levels_use_their_whole_range(name: str) -> None:
    """All levels there are, and no other."""
    for levels in islice(PATTERNS[name]("1", NAMES), 5):
        assert {*levels} == {*range(NUM_LEVELS)}


def test_markov_levels_stay_and_those_served_stay_longer() -> None:
    """Recently served requests are more likely to stay ahead; random ones forget at once."""

    def share_kept(*, is_served: bool) -> float:
        updates = list(islice(PATTERNS["markov"]("1", NAMES), 20))
        kept = [
            before == after
            for levels, following in pairwise(updates)
            for before, after in zip(levels, following, strict=True)
            if (before < NUM_LEVELS // 2) is is_served
        ]
        return sum(kept) / len(kept)

    first, second = islice(PATTERNS["random"]("1", NAMES), 2)
    share_by_chance = sum(a == b for a, b in zip(first, second, strict=True)) / len(NAMES)
    assert share_by_chance < 0.25
    assert 0.25 < share_kept(is_served=False) < share_kept(is_served=True)
