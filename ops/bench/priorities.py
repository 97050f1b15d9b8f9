"""Priorities that change all the time: who ranks where after each update, from a seed.

Owns the levels of a fixed set of conversations, update by update, for benchmarks that set
priorities themselves. What the patterns are is said in ``scheduler.policies.patterns``: the
policies of the same names follow them too.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import count

from scheduler.policies import patterns

Levels = Callable[[str, Sequence[str]], Iterator[list[int]]]


def _levels(pattern: patterns.Pattern, seed: str, names: Sequence[str]) -> Iterator[list[int]]:
    """Levels of all conversations after update 0, 1, 2 ..., without end."""
    levels: list[int | None] = [None for _ in names]
    for update in count():
        drawn = [pattern(seed, update, *each) for each in zip(names, levels, strict=True)]
        yield drawn
        levels = list(drawn)


PATTERNS: Mapping[str, Levels] = {
    name: partial(_levels, pattern) for name, pattern in patterns.PATTERNS.items()
}
