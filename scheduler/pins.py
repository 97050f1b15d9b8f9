"""Turns that have ended and whose KV stays on the device for a while, for the turn behind them.

Owns which these are, until when, in which order they make way, and what became of each pin.
Holding the blocks and letting them go is ``scheduler.vllm_pins``'s. Pins and their end under
pressure are those of Continuum (arXiv:2511.02230); here only who outranks a turn ends its pin.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from scheduler.displacement import HeldBlock


class NextTurn(Protocol):
    """A live request of the conversation."""

    @property
    def priority(self) -> int: ...


class Outcome(Enum):
    """What became of a pin."""

    HIT = "hit"  # the next turn went on from it
    WASTED = "wasted"  # there was no next turn in time, or none that could use it
    RELEASED = "released"  # others needed the memory


@dataclass(slots=True, eq=False)
class HeldTurn:
    """A turn that has ended with all of its blocks still there.

    Held for a moment in any case, and pinned once it is known to wait for a tool. When the next
    turn has come, it is held until that one runs, and has its rank.
    """

    request_id: str
    conversation: Hashable
    priority: int
    arrival_s: float
    blocks: Sequence[HeldBlock]
    until_s: float
    last_step: int = 0  # that may still write its blocks
    pinned_s: float | None = None  # since when
    next_turn: NextTurn | None = None

    @property
    def rank(self) -> tuple[int, float]:
        """Lower is better, as for requests that wait."""
        priority = self.next_turn.priority if self.next_turn else self.priority
        return priority, self.arrival_s


@dataclass(slots=True)
class PinTotals:
    """Pins since the engine started."""

    pins: int = 0
    pin_hits: int = 0
    pins_wasted: int = 0
    pins_released: int = 0
    wasted_block_s: float = 0.0


class HeldTurns:
    """The turns that are held, by request and by conversation; a shared block counts once."""

    def __init__(self) -> None:
        self.totals = PinTotals()
        self._turns: dict[str, HeldTurn] = {}
        self._by_conversation: defaultdict[Hashable, dict[str, HeldTurn]] = defaultdict(dict)
        self._blocks: dict[int, HeldBlock] = {}
        self._num_holds: Counter[int] = Counter()  # by block

    def __len__(self) -> int:
        return len(self._turns)

    @property
    def num_blocks(self) -> int:
        return len(self._blocks)

    @property
    def num_pinned_blocks(self) -> int:
        return len(_distinct(self._pinned()))

    @property
    def num_idle_blocks(self) -> int:
        """Blocks that nobody else uses: they would be free but for the pins."""
        return sum(
            block.ref_cnt == self._num_holds[block_id] for block_id, block in self._blocks.items()
        )

    def hold(self, turn: HeldTurn) -> None:
        self._turns[turn.request_id] = turn
        self._by_conversation[turn.conversation][turn.request_id] = turn
        for block in turn.blocks:
            self._blocks[block.block_id] = block
            self._num_holds[block.block_id] += 1

    def pin(self, request_id: str, *, ttl_s: float, now_s: float) -> None:
        """Hold a turn for so long from now; one that is not held any more is ignored."""
        turn = self._turns.get(request_id)
        if turn is None:
            return
        turn.until_s = now_s + ttl_s
        if ttl_s and turn.pinned_s is None:
            turn.pinned_s = now_s
            self.totals.pins += 1

    def end(self, turn: HeldTurn, outcome: Outcome, now_s: float) -> None:
        """Hold a turn no longer."""
        del self._turns[turn.request_id]
        siblings = self._by_conversation[turn.conversation]
        del siblings[turn.request_id]
        if not siblings:
            del self._by_conversation[turn.conversation]
        for block in turn.blocks:
            self._num_holds[block.block_id] -= 1
            if not self._num_holds[block.block_id]:
                del self._num_holds[block.block_id], self._blocks[block.block_id]
        if turn.pinned_s is not None:
            self._count(outcome, len(turn.blocks) * (now_s - turn.pinned_s))

    def of(self, conversation: Hashable) -> Collection[HeldTurn]:
        """A copy: they may be ended one by one."""
        return list(self._by_conversation.get(conversation, {}).values())

    def expired(self, now_s: float) -> Collection[HeldTurn]:
        """Those whose time is over and whose next turn has not come."""
        return [
            turn
            for turn in self._turns.values()
            if turn.until_s <= now_s and turn.next_turn is None
        ]

    def worst_first(self) -> Iterable[HeldTurn]:
        """In the order in which they make way: those not known to be of use, then by rank."""
        return sorted(
            self._turns.values(),
            key=lambda turn: (turn.pinned_s is None, turn.rank),
            reverse=True,
        )

    def too_many(self, most_blocks: int) -> list[HeldTurn]:
        """The worst ranked pins, without which the others have so many blocks at most."""
        best = sorted(self._pinned(), key=lambda turn: turn.rank)
        num_kept = len(best)
        # What is shared counts once, but in few engines there is that much to count at all.
        while sum(len(turn.blocks) for turn in best[:num_kept]) > most_blocks:
            if len(_distinct(best[:num_kept])) <= most_blocks:
                break
            num_kept -= 1
        return best[num_kept:]

    def outranked_by(self, request: NextTurn, rank: tuple[int, float]) -> list[HeldTurn]:
        """Those that make way for a waiting request, worst first; never the one it goes on from."""
        return [
            turn
            for turn in self.worst_first()
            if turn.next_turn is not request and (turn.pinned_s is None or turn.rank > rank)
        ]

    def _pinned(self) -> list[HeldTurn]:
        return [turn for turn in self._turns.values() if turn.pinned_s is not None]

    def _count(self, outcome: Outcome, block_s: float) -> None:
        self.totals.pin_hits += outcome is Outcome.HIT
        self.totals.pins_released += outcome is Outcome.RELEASED
        if outcome is Outcome.WASTED:
            self.totals.pins_wasted += 1
            self.totals.wasted_block_s += block_s


def _distinct(turns: Iterable[HeldTurn]) -> set[int]:
    return {block.block_id for turn in turns for block in turn.blocks}
