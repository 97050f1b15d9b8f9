"""Who makes way when a better-ranked request waits: the choice alone, on plain values.

A waiting request displaces a running one only if its priority number is strictly lower, only as
far as it lacks a sequence slot or KV blocks, and only if it then fits; the worst ranked goes
first. A prefill that would leave it no tokens of the step is held for that step instead: that
copies nothing. Where even the running lack blocks, the worst ranked leaves for them too.

So that no two requests take turns on the device at every change of their ranks, a request that
was displaced itself displaces only those that have run a quantum; a newcomer displaces anybody.
"""

import heapq
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, TypeVar

import msgspec

from scheduler.switch_budget import UNLIMITED, Allowance

Item = TypeVar("Item", bound=Any)

# A run lasts at least so many steps and so many times what the switch behind it cost: switches
# then take at most 1/16 of the engine's time, and whoever waits for one to end still waits less
# than half a second at 30 ms per step.
QUANTUM = 16


class HeldBlock(Protocol):
    """A KV block as the engine knows it."""

    @property
    def block_id(self) -> int: ...

    @property
    def ref_cnt(self) -> int: ...


# A struct, as many are made in a step: making a frozen dataclass takes fifteen times as long.
class WaitingRequest(msgspec.Struct, frozen=True, gc=False):
    """What a waiting request needs to be admitted."""

    request_id: str
    priority: int
    num_blocks: int  # that the free blocks must cover
    num_tokens: int  # it would compute in this step, given the whole budget
    min_tokens: int  # with fewer it is not admitted at all
    cached_blocks: Sequence[HeldBlock] = ()  # it would start from, needed beside num_blocks
    was_displaced: bool = False  # at least once since it arrived
    is_holder: bool = False  # it has blocks already: nobody is admitted before it
    has_slot: bool = False  # kept for it while its KV was loaded
    is_load: bool = False  # it would only begin to load, beside what prefills still need


class RunningRequest(msgspec.Struct, frozen=True, gc=False):
    """What a running request holds, and what it takes in this step."""

    request_id: str
    priority: int
    blocks: Sequence[HeldBlock]
    num_growth_blocks: int
    num_tokens: int
    num_reserved_blocks: int = 0  # that its prefill will need after this step
    is_in_quantum: bool = False


@dataclass(frozen=True, slots=True)
class Room:
    """What this step leaves once the running requests have what they ask for.

    Tokens and blocks can be below zero: then not even they get it all. There may be more blocks
    than ``num_blocks``: by how many is asked when these are too few, as it takes a while to say.
    """

    num_running: int
    num_slots: int
    num_blocks: int
    num_tokens: int
    watermark_blocks: int = 0  # kept free while anything else runs
    reserved_blocks: int = 0  # that prefills in flight will need after this step
    count_more_blocks: Callable[[], int] = int  # none


@dataclass(frozen=True, slots=True)
class Displacement:
    """Running requests to preempt, and those to leave out of this one step."""

    victims: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    put_off: tuple[str, ...] = ()  # waiting ones for whom others would have gone, were it allowed


NO_DISPLACEMENT = Displacement()


def choose_displaced(
    waiting: Iterable[WaitingRequest],
    running: Iterable[RunningRequest],
    room: Room,
    allowance: Allowance = UNLIMITED,
) -> Displacement:
    """Who makes way. ``waiting`` in the order of admission, ``running`` from worst rank to best.

    Both are read only as far as needed: ``waiting`` while it outranks somebody and fits,
    ``running`` while it is outranked and in the way. Those who leave for lack of blocks count
    against the ``allowance``, but leave in any case.
    """
    choice = _Choice(running, room, allowance)
    choice.cover_shortage()
    for request in waiting:
        # A holder is in the way of better ones until it is admitted, whomever it outranks.
        if not request.is_holder and not choice.has_outranked_by(request):
            break
        if not choice.admit(request):
            break
    return choice.displacement


def quantum_steps(switch_s: float, step_s: float) -> int:
    """Steps that a request runs undisturbed after a switch of this cost; either may be unknown."""
    num_steps_lost = switch_s / step_s if step_s else 0.0
    return math.ceil(QUANTUM * max(num_steps_lost, 1.0))


def ranked(heap: Sequence[Item]) -> Iterator[Item]:
    """A binary heap's items from least to greatest, each found when asked for.

    The first k cost O(k log k) whatever the heap's size, and the heap stays as it is.
    """
    frontier = [(heap[0], 0)] if heap else []
    while frontier:
        item, index = heapq.heappop(frontier)
        yield item
        for child in (2 * index + 1, 2 * index + 2):
            if child < len(heap):
                heapq.heappush(frontier, (heap[child], child))


class _FreedBlocks:
    """How many blocks would be free if some requests were gone: a shared one only with its last.

    Counted when asked for: where only slots are short, nobody asks.
    """

    def __init__(self) -> None:
        self._uncounted: list[Sequence[HeldBlock]] = []
        self._count = 0
        self._num_gone: dict[int, int] = {}

    @property
    def count(self) -> int:
        while self._uncounted:
            for block in self._uncounted.pop():
                num_gone = self._num_gone.get(block.block_id, 0) + 1
                self._num_gone[block.block_id] = num_gone
                self._count += num_gone == block.ref_cnt
        return self._count

    def num_among(self, blocks: Sequence[HeldBlock]) -> int:
        if not blocks or not self.count:
            return 0
        return sum(0 < self._num_gone.get(one.block_id, 0) == one.ref_cnt for one in blocks)

    def add(self, blocks: Sequence[HeldBlock]) -> None:
        self._uncounted.append(blocks)

    def remove(self, blocks: Sequence[HeldBlock]) -> None:
        self._count = self.count
        for block in blocks:
            self._count -= self._num_gone[block.block_id] == block.ref_cnt
            self._num_gone[block.block_id] -= 1


class _Choice:
    """The step as chosen so far: who has gone, who is held, and what that leaves.

    ``_seen`` is what has been read of ``running``, worst first.
    """

    def __init__(self, running: Iterable[RunningRequest], room: Room, allowance: Allowance) -> None:
        self._allowance = allowance
        self._put_off: tuple[str, ...] = ()
        self._unseen = iter(running)
        self._seen: list[RunningRequest] = []
        self._num_first_gone = 0  # of those seen, so many in a row have gone, from the worst on
        self._gone: set[str] = set()
        self._held: set[str] = set()
        self._freed = _FreedBlocks()
        self._watermark_blocks = room.watermark_blocks
        self._num_reserved_blocks = room.reserved_blocks
        self._num_beside = room.num_running  # that run, or will
        self._num_slots = room.num_slots
        self._num_blocks = room.num_blocks
        self._count_more_blocks = room.count_more_blocks
        self._num_tokens = room.num_tokens

    @property
    def displacement(self) -> Displacement:
        names = [one.request_id for one in self._seen]
        held = self._held - self._gone
        return Displacement(
            victims=tuple(name for name in names if name in self._gone),
            held=tuple(name for name in names if name in held),
            put_off=self._put_off,
        )

    def cover_shortage(self) -> None:
        """Send the worst ranked away until the rest have the blocks that they ask for.

        Those within their quantum go last, but they go: else nobody might ever get on.
        """
        if self._num_blocks < 0:
            self._count_blocks()
        if self._num_blocks >= 0:
            return
        for one in sorted(self._worst_staying_first(), key=lambda one: one.is_in_quantum):
            if self._num_blocks + self._freed.count >= 0 or self._num_beside <= 1:
                return
            self._send_away(one)

    def has_outranked_by(self, request: WaitingRequest) -> bool:
        return next(self._outranked_by(request), None) is not None

    def admit(self, request: WaitingRequest) -> bool:
        """Make way for a request and count it in; whether it fits. If not, nobody makes way."""
        gone, held = self._preempt_for(request), self._hold_for(request)
        is_fitting = self._has_slot_and_blocks(request) and self._num_tokens >= request.min_tokens
        is_allowed = not gone or len(self._gone) <= self._num_allowed(request)
        if is_fitting and not is_allowed:
            self._put_off = (request.request_id,)
        if not is_fitting or not is_allowed:
            for one in held:
                self._release(one)
            for one in gone:
                self._bring_back(one)
            return False
        self._num_beside += 1
        self._num_slots -= not request.has_slot
        self._num_blocks -= request.num_blocks
        self._num_tokens -= min(self._num_tokens, request.num_tokens)
        return True

    def _num_allowed(self, request: WaitingRequest) -> float:
        return self._allowance.returning if request.was_displaced else self._allowance.new

    def _outranked_by(self, request: WaitingRequest) -> Iterator[RunningRequest]:
        """Those still running whose rank is lower than that of ``request``, worst first."""
        for one in self._worst_staying_first():
            if one.priority <= request.priority:
                return
            yield one

    def _displaceable_by(self, request: WaitingRequest) -> Iterator[RunningRequest]:
        for one in self._outranked_by(request):
            if not (one.is_in_quantum and request.was_displaced):
                yield one

    def _worst_staying_first(self) -> Iterator[RunningRequest]:
        seen, gone = self._seen, self._gone
        while self._num_first_gone < len(seen) and seen[self._num_first_gone].request_id in gone:
            self._num_first_gone += 1
        for one in islice(seen, self._num_first_gone, None):
            if one.request_id not in gone:
                yield one
        for one in self._unseen:
            seen.append(one)
            yield one

    def _has_slot_and_blocks(self, request: WaitingRequest) -> bool:
        return self._num_slots + request.has_slot > 0 and self._num_lacking_blocks(request) <= 0

    def _num_lacking_blocks(self, request: WaitingRequest) -> int:
        num_needed = request.num_blocks
        if self._num_beside:
            num_needed += self._watermark_blocks
        if request.is_load:
            num_needed += self._num_reserved_blocks
        if num_needed + len(request.cached_blocks) <= self._num_blocks:
            return num_needed - self._num_blocks  # whatever victims free
        self._count_blocks()
        # What a victim shared with it is free for others to take, but not for itself.
        num_needed += self._freed.num_among(request.cached_blocks)
        return num_needed - self._num_blocks - self._freed.count

    def _count_blocks(self) -> None:
        self._num_blocks += self._count_more_blocks()
        self._count_more_blocks = int

    def _preempt_for(self, request: WaitingRequest) -> list[RunningRequest]:
        if self._is_out_of_reach(request):
            return []
        gone = []
        for one in self._displaceable_by(request):
            if self._has_slot_and_blocks(request):
                break
            self._send_away(one)
            gone.append(one)
        # A small one may have gone in vain before a big one made the room alone.
        in_vain = {one.request_id for one in reversed(gone[:-1]) if self._can_spare(one, request)}
        return [one for one in reversed(gone) if one.request_id not in in_vain]

    def _is_out_of_reach(self, request: WaitingRequest) -> bool:
        """Whether no displacement could make room: a cheap answer for one that waits for long."""
        num_lacking = self._num_lacking_blocks(request) - self._watermark_blocks
        if num_lacking <= 0:
            return False
        return num_lacking > sum(
            len(one.blocks) + one.num_growth_blocks + one.num_reserved_blocks
            for one in self._displaceable_by(request)
        )

    def _can_spare(self, one: RunningRequest, request: WaitingRequest) -> bool:
        self._bring_back(one)
        if self._has_slot_and_blocks(request):
            return True
        self._send_away(one)
        return False

    def _hold_for(self, request: WaitingRequest) -> list[RunningRequest]:
        held: list[RunningRequest] = []
        if self._num_tokens >= request.num_tokens:
            return held
        for one in self._outranked_by(request):
            if self._num_tokens >= request.num_tokens:
                break
            is_prefill = one.num_tokens > 1  # a decode takes one token: holding it gains nothing
            if is_prefill and one.request_id not in self._held:
                self._held.add(one.request_id)
                self._num_tokens += one.num_tokens
                held.append(one)
        return held

    def _release(self, one: RunningRequest) -> None:
        self._held.remove(one.request_id)
        self._num_tokens -= one.num_tokens

    def _send_away(self, one: RunningRequest) -> None:
        self._gone.add(one.request_id)
        self._freed.add(one.blocks)
        self._num_beside -= 1
        self._num_slots += 1
        self._num_blocks += one.num_growth_blocks
        self._num_reserved_blocks -= one.num_reserved_blocks
        if one.request_id not in self._held:
            self._num_tokens += one.num_tokens

    def _bring_back(self, one: RunningRequest) -> None:
        self._gone.remove(one.request_id)
        self._num_first_gone = 0
        self._freed.remove(one.blocks)
        self._num_beside += 1
        self._num_slots -= 1
        self._num_blocks -= one.num_growth_blocks
        self._num_reserved_blocks += one.num_reserved_blocks
        if one.request_id not in self._held:
            self._num_tokens -= one.num_tokens
