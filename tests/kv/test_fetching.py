"""Fetches: what is worth one, what room they may take, and when they are over."""

from collections import Counter
from typing import Any

from kv.fetching import Fetches
from kv.host_cache import HostCache, Key
from kv.neighbours import Found
from kv.single_blocks import SingleBlockPool
from kv.swap import RequestKV, SwapPlanner
from kv.swap_manager import SwapReport
from kv.swap_plan import BlockCopies, Direction, Urgency

BLOCK_TOKENS, NUM_WORKERS = 16, 2
KEYS: list[Key] = [f"key {number}" for number in range(8)]
PRIORITY = 5


class KnownNeighbours:
    """Who has what, as it stands here."""

    def __init__(self, pools: dict[str, list[Key]]) -> None:
        self._found = {
            key: Found(pool, len(pool), block, 100 + block)
            for pool, keys in pools.items()
            for block, key in enumerate(keys)
        }

    def look(self) -> None: ...

    def find(self, key: Key) -> Found | None:
        return self._found.get(key)


class Bench:
    """An engine's host memory beside neighbours that have some ``KEYS``."""

    def __init__(self, num_host_blocks: int = 8, **pools: list[Key]) -> None:
        self.cache = HostCache(SingleBlockPool("host", num_host_blocks))
        self.planner = SwapPlanner(self.cache, BLOCK_TOKENS)
        neighbours: Any = KnownNeighbours(pools)
        self.fetches = Fetches(
            self.planner, neighbours, num_workers=NUM_WORKERS, block_tokens=BLOCK_TOKENS
        )

    def begin(self, first: int = 0, name: str = "a") -> bool:
        return self.fetches.begin(name, KEYS, first, PRIORITY)

    def keep(self, keys: list[Key], priority: int) -> None:
        """Another request has left, and relies on its copies."""
        kv = RequestKV("b", keys, [*range(len(keys))], len(keys) * BLOCK_TOKENS, priority)
        assert self.planner.swap_out(kv)

    def across(self) -> list[BlockCopies]:
        copies = self.planner.take_plan().copies
        return [each for each in copies if each.direction is Direction.ACROSS]

    def hear(self, copies: list[BlockCopies], *, missed: tuple[int, ...] = ()) -> None:
        """A worker has made these."""
        self.planner.forget(missed)
        self.fetches.hear(SwapReport(across=Counter(each.stamp for each in copies)))

    def held(self) -> list[Key]:
        return [key for key in KEYS if self.planner.holds(key)]


def test_what_a_neighbour_has_is_fetched_up_to_the_first_gap() -> None:
    """From where the engine's own ends, over what it has itself further on."""
    bench = Bench(one=[*KEYS[2:4], *KEYS[5:7]])
    bench.keep([*KEYS[:2], KEYS[4]], PRIORITY)

    assert bench.begin(first=2)

    [copies] = bench.across()
    assert copies.source is not None
    assert (copies.source.pool, copies.source.life) == ("one", 3)
    assert (copies.source.blocks, copies.source.stamps) == ([0, 1, 2, 3], [100, 101, 102, 103])
    assert copies.host_blocks == [bench.cache.find(key) for key in (*KEYS[2:4], *KEYS[5:7])]
    assert copies.urgency is Urgency.REQUEST


def test_what_is_computed_sooner_than_fetched_is_not_fetched() -> None:
    """Three blocks are fewer than 64 tokens."""
    assert not Bench(one=KEYS[:3]).begin()
    assert Bench(one=KEYS[:4]).begin()


def test_a_fetch_takes_no_room_of_better_ranked_requests() -> None:
    """Only what is free or matters less; where that is little, for the request's beginning."""
    for rank, num_fetched in ((PRIORITY - 1, 4), (PRIORITY, 4), (PRIORITY + 1, 8)):
        bench = Bench(num_host_blocks=8, one=KEYS)
        bench.keep([f"other {number}" for number in range(4)], rank)
        bench.planner.drop("b")  # what it has left is to be found, and may be written over

        assert bench.begin()

        assert bench.held() == KEYS[:num_fetched]


def test_a_fetch_is_over_when_every_worker_has_made_its_copies() -> None:
    """Until then nobody is offered what is fetched, nor is it lost; from however many it comes."""
    bench = Bench(one=KEYS[:4], two=KEYS[4:])
    assert bench.begin()
    copies = bench.across()
    assert {each.source.pool for each in copies if each.source} == {"one", "two"}
    assert len({each.stamp for each in copies}) == 1

    bench.hear(copies)
    bench.hear(copies[:1])
    assert bench.fetches.keys == {*KEYS}
    assert bench.cache.num_available == 0
    bench.hear(copies[1:])

    assert (bench.fetches.keys, bench.held()) == (set(), KEYS)
    assert bench.cache.num_available == 8
    assert (bench.planner.totals.fetched_blocks, bench.planner.totals.missed_blocks) == (8, 0)


def test_what_was_missed_is_free_again() -> None:
    """It counts as missed, and the rest as fetched."""
    bench = Bench(one=KEYS[:4])
    assert bench.begin()
    [copies] = bench.across()

    bench.hear([copies], missed=(copies.host_blocks[1],))
    bench.hear([copies])

    assert bench.held() == [KEYS[0], *KEYS[2:4]]
    assert bench.cache.num_available == 8
    assert (bench.planner.totals.fetched_blocks, bench.planner.totals.missed_blocks) == (3, 1)


def test_a_request_waits_for_one_fetch() -> None:
    """However much is missed, until it has been given blocks, as a preempted one is anew."""
    bench = Bench(one=KEYS)
    assert bench.begin()
    [copies] = bench.across()
    for _ in range(NUM_WORKERS):
        bench.hear([copies], missed=tuple(copies.host_blocks))
    assert bench.held() == []

    assert not bench.begin()
    bench.fetches.may_ask_again("a")
    assert bench.begin()
