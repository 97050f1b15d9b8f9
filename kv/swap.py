"""Swaps as data: whose KV lies in host memory, and which copies the next step has to make.

Owns the bookkeeping of the engine's scheduler side: requests by id, blocks by number, tokens by
count. It moves no byte; ``kv.swap_manager`` carries the plans out. Best effort by design: what
is not kept is computed again by the engine.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from kv.host_cache import HostCache, Key
from kv.neighbours import Found
from kv.swap_plan import (
    STEPS_IN_FLIGHT,
    BlockCopies,
    Direction,
    NeighbourBlocks,
    SwapPlan,
    Urgency,
)

# Worse than any live request's; it must not be the worst that a heap can hold.
_FINISHED = 1 << 62


@dataclass(slots=True)
class SwapTotals:
    """Swaps since the engine started. Blocks count once, however many workers share them."""

    swaps_out: int = 0
    swaps_in: int = 0
    blocks_out: int = 0
    blocks_in: int = 0
    stall_s: float = 0.0  # the engine's loop waited for copies
    descriptors_out: int = 0
    descriptors_in: int = 0
    blocks_ahead: int = 0
    blocks_spared: int = 0
    blocks_found: int = 0
    async_swaps_in: int = 0
    conflicts: int = 0
    evicted_blocks: int = 0
    lost_copies: int = 0
    failed_blocks: int = 0
    load_waits: int = 0
    load_waits_1ms: int = 0  # of them, those of at most a millisecond, and so on
    load_waits_10ms: int = 0
    load_waits_100ms: int = 0
    load_waits_1s: int = 0
    load_wait_s: float = 0.0
    adopted_blocks: int = 0
    refused_pools: int = 0
    fetched_blocks: int = 0
    missed_blocks: int = 0

    def add_load_wait(self, seconds: float) -> None:
        self.load_waits += 1
        self.load_waits_1ms += seconds <= 1e-3
        self.load_waits_10ms += seconds <= 1e-2
        self.load_waits_100ms += seconds <= 1e-1
        self.load_waits_1s += seconds <= 1
        self.load_wait_s += seconds


class RequestKV(NamedTuple):
    """A request's KV on the device, as far as it is computed.

    ``keys`` are those of its blocks whose tokens are known, ``device_blocks`` is its block table.
    Lower ``priority`` runs first.
    """

    request_id: str
    keys: Sequence[Key]
    device_blocks: Sequence[int]
    num_tokens: int
    priority: int


@dataclass(slots=True)
class KeptRequest:
    """A swapped-out request: its first ``num_tokens`` tokens, the last block maybe partly full."""

    num_tokens: int
    host_blocks: list[int]
    priority: int


class SwapPlanner:
    """What host memory keeps for whom, and the plan of the step that is being scheduled.

    A request that is swapped out relies on its copies until it is back. With ``reuse``, what was
    copied once stays to be found: by the same request when it leaves again, by the next turn of
    its conversation, by anybody with the same prefix.
    """

    def __init__(self, cache: HostCache, block_tokens: int, *, reuse: bool = True) -> None:
        self.totals = SwapTotals()
        self._cache = cache
        self._block_tokens = block_tokens
        self._reuse = reuse
        self._kept: dict[str, KeptRequest] = {}
        self._copies: list[BlockCopies] = []

    @property
    def num_host_blocks(self) -> int:
        return self._cache.num_blocks

    @property
    def num_host_blocks_used(self) -> int:
        """Blocks that a swapped-out request relies on; what else is held can be overwritten."""
        return self._cache.num_needed

    def adopt(self, held: Sequence[tuple[int, Key]]) -> None:
        """Begin with the copies that an engine before this one has left, the oldest first."""
        self._cache.adopt(held, _FINISHED)
        self.totals.adopted_blocks = len(held)

    def num_kept_tokens(self, request_id: str) -> int:
        kept = self._kept.get(request_id)
        return kept.num_tokens if kept else 0

    def num_found_blocks(self, keys: Sequence[Key], first: int) -> int:
        """How many blocks in a row host memory holds, from the ``first`` of ``keys`` on."""
        end = first
        while end < len(keys) and self._cache.find(keys[end]) is not None:
            end += 1
        return end - first

    def holds(self, key: Key) -> bool:
        return self._cache.find(key) is not None

    def num_yielding_to(self, priority: int, *, at_most: int) -> int:
        """How many blocks, up to ``at_most``, are free or hold what matters less."""
        return self._cache.num_yielding_to(priority, at_most=at_most)

    def fetch(self, found: Sequence[tuple[Key, Found]], *, behind: Key | None) -> list[BlockCopies]:
        """Plan to copy what neighbours have, none of which is held; all with one stamp.

        ``behind`` is what comes before in the request. Until ``end_fetch`` the blocks stay.
        """
        after = None if behind is None else self._cache.find(behind)
        targets = self._cache.put([key for key, _ in found], after=after)
        by_life: dict[tuple[str, int], list[tuple[Found, int]]] = {}
        for (_, source), target in zip(found, targets, strict=True):
            by_life.setdefault((source.pool, source.life), []).append((source, target))
        copies = [
            BlockCopies(
                Direction.ACROSS,
                Urgency.REQUEST,
                [],
                [target for _, target in pairs],
                stamp=self._cache.last_stamp,
                source=NeighbourBlocks(
                    pool,
                    life,
                    [source.block for source, _ in pairs],
                    [source.stamp for source, _ in pairs],
                ),
            )
            for (pool, life), pairs in by_life.items()
        ]
        self._copies += copies
        return copies

    def end_fetch(self, keys: Sequence[Key], host_blocks: Sequence[int], priority: int) -> None:
        """What has been fetched may be found, or overwritten, as anything else."""
        num_whole = sum(map(self.holds, keys))
        self.totals.fetched_blocks += num_whole
        self.totals.missed_blocks += len(keys) - num_whole
        self._cache.spare(host_blocks, priority)

    def swap_out(self, kv: RequestKV) -> bool:
        """Keep a request that leaves the device; whether all of it could be kept.

        Blocks that host memory has already are not sent. Where there is no room for all, its
        beginning is kept.
        """
        self.drop(kv.request_id)
        keys: list[Key | None] = [*kv.keys[: kv.num_tokens // self._block_tokens]]
        # The last block if it is partly full, and what is so new that its tokens are not known yet.
        keys += [None] * (self._num_blocks(kv.num_tokens) - len(keys))
        host_blocks = self._held(keys)
        self._cache.need(_present(host_blocks))
        self._make_room(host_blocks.count(None), kv.priority)
        num_sent = self._send(kv, keys, host_blocks, Urgency.NOBODY_YET)
        num_kept = host_blocks.index(None) if None in host_blocks else len(host_blocks)
        if num_kept < len(host_blocks):
            self._cache.spare(_present(host_blocks[num_kept:]), kv.priority)
        kept_blocks = _present(host_blocks[:num_kept])
        self._cache.use(kept_blocks, kv.priority)
        if not kept_blocks:
            return not keys
        num_tokens = min(kv.num_tokens, num_kept * self._block_tokens)
        self._kept[kv.request_id] = KeptRequest(num_tokens, kept_blocks, kv.priority)
        self.totals.swaps_out += 1
        self.totals.blocks_spared += num_kept - num_sent
        return num_kept == len(keys)

    def copy_ahead(self, kv: RequestKV, first: int, *, at_most: int) -> int:
        """Send full blocks that a running request may have to leave, from the ``first`` on.

        Only what is free, or holds what matters less, is used for it. Returns the block up to
        which all are in host memory now.
        """
        first += self.num_found_blocks(kv.keys[: kv.num_tokens // self._block_tokens], first)
        return self._send_early(kv, first, at_most=at_most, worse_than=kv.priority)

    def keep_finished(self, kv: RequestKV) -> None:
        """Keep a finished request's full blocks for the next turn, or whoever has its prefix.

        It has no rank any more: such copies go before those of live requests, the oldest first.
        """
        kept = self._kept.pop(kv.request_id, None)
        if kept:
            self._cache.spare(kept.host_blocks, _FINISHED)
        kv = kv._replace(priority=_FINISHED)
        keys = kv.keys[: kv.num_tokens // self._block_tokens]
        num_held = self.num_found_blocks(keys, 0)
        self._cache.use(_present(self._held(keys[:num_held])), _FINISHED)
        self._send_early(kv, num_held, at_most=len(keys), worse_than=_FINISHED - 1)

    def swap_in(
        self,
        kv: RequestKV,
        *,
        first_token: int,
        end_token: int,
        is_async: bool = False,
    ) -> None:
        """Plan to load tokens ``first_token`` to ``end_token - 1``, which host memory holds.

        ``kv.device_blocks`` is the request's whole new block table; ``first_token`` starts a
        block. The request relies on its copies no longer.
        """
        assert first_token % self._block_tokens == 0
        first, end = first_token // self._block_tokens, self._num_blocks(end_token)
        kept = self._kept.get(kv.request_id)
        if kept and end_token <= kept.num_tokens:
            host_blocks = kept.host_blocks[first:end]
        else:
            host_blocks = _present(self._held(kv.keys[first:end]))
            self._cache.use(host_blocks, kv.priority)
        assert len(host_blocks) == end - first
        self._copies.append(
            BlockCopies(
                Direction.IN,
                Urgency.REQUEST if is_async else Urgency.STEP,
                list(kv.device_blocks[first:end]),
                host_blocks,
                kv.request_id if is_async else None,
            )
        )
        if kept:
            self.totals.swaps_in += 1
            self.totals.async_swaps_in += is_async
        else:
            self.totals.blocks_found += end - first
        self.totals.blocks_in += end - first
        self.drop(kv.request_id)

    def rank_anew(self, priorities: Mapping[str, int]) -> None:
        """Let swapped-out requests' copies matter as much as these, by id, do now."""
        for request_id, priority in priorities.items():
            if kept := self._kept.get(request_id):
                kept.priority = priority

    def drop(self, request_id: str) -> None:
        """End a request's reliance on its copies, if there is one."""
        kept = self._kept.pop(request_id, None)
        if kept:
            self._cache.spare(kept.host_blocks, kept.priority)

    def forget_recent(self) -> None:
        """Forget what was copied in the last steps: a load failed, and others may have built on it.

        Whatever was computed from the wrong blocks since is as wrong, under keys that look right.
        """
        self.forget(self._cache.recent(STEPS_IN_FLIGHT))

    def forget(self, host_blocks: Collection[int]) -> None:
        """Use these copies no more: whoever relies on one keeps what comes before it."""
        self._cache.forget(host_blocks)
        gone = set(host_blocks)
        for request_id, kept in list(self._kept.items()):
            index = next((i for i, one in enumerate(kept.host_blocks) if one in gone), None)
            if index is not None:
                self._cut(request_id, index)

    def end(self, request_id: str, keys: Iterable[Key]) -> None:
        """A request has ended whose KV is of use to nobody else: forget it all."""
        self.drop(request_id)
        self._cache.forget(_present(self._held(keys)))

    def forget_all(self) -> None:
        for request_id in list(self._kept):
            self.drop(request_id)
        self._cache.forget(self._cache.held())

    def leave_index(self) -> None:
        """Neither successors nor neighbours may find what is kept from now on."""
        self._cache.leave_index()

    def take_plan(self, written_blocks: Sequence[int] = ()) -> SwapPlan:
        """The copies planned since the last call; the next plan starts empty."""
        copies, self._copies = self._copies, []
        self._cache.end_generation()
        self.totals.evicted_blocks = self._cache.num_evicted
        return SwapPlan(copies, written_blocks)

    def _held(self, keys: Iterable[Key | None]) -> list[int | None]:
        return [None if key is None else self._cache.find(key) for key in keys]

    def _send_early(self, kv: RequestKV, first: int, *, at_most: int, worse_than: int) -> int:
        """Send full blocks from the ``first`` on that nobody waits for; up to which they are kept.

        What is overwritten for them is of a priority ``worse_than`` this.
        """
        keys = kv.keys[: min(kv.num_tokens // self._block_tokens, first + at_most)]
        num_blocks = self._cache.num_yielding_to(worse_than, at_most=len(keys) - first)
        if not num_blocks:
            return first
        # Looked up only from there on: a context is long, and this is asked in every step.
        begin = max(first - 1, 0)
        part = kv._replace(keys=keys[begin:], device_blocks=kv.device_blocks[begin:])
        keys = keys[begin : first + num_blocks]
        host_blocks = self._held(keys)
        self._cache.need(_present(host_blocks))
        self.totals.blocks_ahead += self._send(
            part, keys, host_blocks, Urgency.NOBODY, first=first - begin
        )
        self._cache.spare(_present(host_blocks), kv.priority)
        return first + num_blocks

    def _send(
        self,
        kv: RequestKV,
        keys: Sequence[Key | None],
        host_blocks: list[int | None],
        urgency: Urgency,
        *,
        first: int = 0,
    ) -> int:
        """Plan copies of what is None in ``host_blocks``, filled in as far as there is room."""
        missing = [index for index in range(first, len(keys)) if host_blocks[index] is None]
        missing = missing[: self._cache.num_available]
        if not missing:
            return 0
        source = [kv.device_blocks[index] for index in missing]
        after = host_blocks[missing[0] - 1] if missing[0] else None
        targets = self._cache.put(
            [keys[index] if self._reuse else None for index in missing],
            after=after,
        )
        for index, target in zip(missing, targets, strict=True):
            host_blocks[index] = target
        self._copies.append(
            BlockCopies(Direction.OUT, urgency, source, targets, stamp=self._cache.last_stamp)
        )
        self.totals.blocks_out += len(targets)
        return len(targets)

    def _make_room(self, num_blocks: int, priority: int) -> None:
        """At the cost of swapped-out requests of worse priority: they are computed again."""
        while num_blocks > self._cache.num_available:
            worst = max(
                self._kept, key=lambda request_id: self._kept[request_id].priority, default=None
            )
            if worst is None or self._kept[worst].priority <= priority:
                return
            self.drop(worst)
            self.totals.lost_copies += 1

    def _cut(self, request_id: str, num_blocks: int) -> None:
        """Keep only a request's first ``num_blocks`` blocks."""
        kept = self._kept[request_id]
        self._cache.spare(kept.host_blocks[num_blocks:], kept.priority)
        del kept.host_blocks[num_blocks:]
        kept.num_tokens = min(kept.num_tokens, num_blocks * self._block_tokens)
        if not num_blocks:
            del self._kept[request_id]

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_tokens)


def _present(host_blocks: Iterable[int | None]) -> list[int]:
    return [block for block in host_blocks if block is not None]
