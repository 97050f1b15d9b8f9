"""Priorities that change all the time: who ranks where after each update, from a seed.

Owns the two patterns that FastSwitch (arXiv:2411.18424) is measured with. ``random`` draws every
conversation's level anew. ``markov`` has memory: most levels stay, and those that are served, the
high ones, stay longer. A level depends on seed, update and conversation alone, so that all modes
of a benchmark see the same. A lower level runs first.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from random import Random

NUM_LEVELS = 8
_STAY_SERVED, _STAY_WAITING = 0.65, 0.4  # chances to keep a level in the better and worse half

Pattern = Callable[[str, Sequence[str]], Iterator[list[int]]]


def random_levels(seed: str, names: Sequence[str]) -> Iterator[list[int]]:
    """Levels of all conversations after update 0, 1, 2 ..., without end."""
    update = 0
    while True:
        yield [_dice(seed, update, name).randrange(NUM_LEVELS) for name in names]
        update += 1


def markov_levels(seed: str, names: Sequence[str]) -> Iterator[list[int]]:
    """Levels of all conversations after update 0, 1, 2 ..., without end."""
    levels = [_dice(seed, 0, name).randrange(NUM_LEVELS) for name in names]
    update = 0
    while True:
        yield list(levels)
        update += 1
        for index, name in enumerate(names):
            dice = _dice(seed, update, name)
            is_served = levels[index] < NUM_LEVELS // 2
            if dice.random() >= (_STAY_SERVED if is_served else _STAY_WAITING):
                levels[index] = dice.randrange(NUM_LEVELS)


PATTERNS: Mapping[str, Pattern] = {"random": random_levels, "markov": markov_levels}


def _dice(seed: str, update: int, name: str) -> Random:
    return Random(f"{seed} {update} {name}")
