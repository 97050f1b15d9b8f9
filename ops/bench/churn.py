"""Where the blocks of requests lie in a pool that has been in use for long.

Owns a model without tokens or time: requests come, grow block by block and end in random order,
as many at once as the wanted part of the pool holds. What is measured on blocks of a pool that
is fresh would flatter every pool: there all runs are long.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol

TURNOVER = 20  # requests that come for each that there is room for
_PROMPT_SHARE = 0.7  # of a request's blocks, taken at once


class Pool(Protocol):
    """The free blocks of one memory, as ``kv`` has them."""

    @property
    def num_blocks(self) -> int: ...

    def take(self, num_blocks: int, *, after: int | None = None) -> list[int]: ...

    def give(self, blocks: Sequence[int]) -> None: ...


@dataclass(slots=True)
class _Holder:
    blocks: list[int]
    num_wanted: int


def churned(pool: Pool, num_blocks: int, use: float, random: Random) -> list[list[int]]:
    """The first ``num_blocks`` blocks of each request that is left and has as many: at least two.

    Requests have an eighth to twice as many. No more than ``use`` of the pool is taken at any time.
    """
    living: list[_Holder] = []
    num_left = round(TURNOVER * use * pool.num_blocks / num_blocks)
    while num_left > 0 or sum(one.num_wanted >= num_blocks for one in living) < 2:
        num_left -= 1
        num_wanted = random.randint(-(-num_blocks // 8), 2 * num_blocks)
        while living and _num_used(living) + num_wanted > use * pool.num_blocks:
            pool.give(living.pop(random.randrange(len(living))).blocks)
        living.append(_Holder(pool.take(max(1, round(_PROMPT_SHARE * num_wanted))), num_wanted))
        _grow(living, pool)
    while any(len(one.blocks) < one.num_wanted for one in living):
        _grow(living, pool)
    return [one.blocks[:num_blocks] for one in living if one.num_wanted >= num_blocks]


def _num_used(living: Sequence[_Holder]) -> int:
    return sum(one.num_wanted for one in living)


def _grow(living: Sequence[_Holder], pool: Pool) -> None:
    for one in living:
        if len(one.blocks) < one.num_wanted:
            one.blocks += pool.take(1, after=one.blocks[-1])
