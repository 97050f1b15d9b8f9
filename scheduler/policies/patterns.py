"""Priorities that change all the time: what level a name has after each update, from a seed.

Owns the two patterns that FastSwitch (arXiv:2411.18424) is measured with. ``random`` draws every
level anew. ``markov`` has memory: most levels stay, and those that are served, the high ones,
stay longer. A draw depends on seed, update and name alone, so that whoever has the seed sees the
same levels, in whatever order they ask. A lower level runs first.
"""

from collections.abc import Callable, Mapping
from hashlib import blake2b

NUM_LEVELS = 8
_STAY_SERVED, _STAY_WAITING = 0.65, 0.4  # chances to keep a level in the better and worse half

Pattern = Callable[[str, int, str, int | None], int]
"""``(seed, update, name, level before)`` to level; a name that is new had none before."""


def random_level(seed: str, update: int, name: str, _before: int | None) -> int:
    _, level = _draw(seed, update, name)
    return level


def markov_level(seed: str, update: int, name: str, before: int | None) -> int:
    chance, level = _draw(seed, update, name)
    if before is None:
        return level
    is_served = before < NUM_LEVELS // 2
    return before if chance < (_STAY_SERVED if is_served else _STAY_WAITING) else level


PATTERNS: Mapping[str, Pattern] = {"random": random_level, "markov": markov_level}


def _draw(seed: str, update: int, name: str) -> tuple[float, int]:
    """A number from 0 up to 1 and a level, each evenly spread and independent of the other."""
    # A Random seeded per name is five times as dear, and there may be ten thousand names.
    digest = blake2b(f"{seed} {update} {name}".encode(), digest_size=8).digest()
    return int.from_bytes(digest[:4]) / 2**32, int.from_bytes(digest[4:]) % NUM_LEVELS
