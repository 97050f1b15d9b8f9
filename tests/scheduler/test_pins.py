"""Turns that are held after their end: who makes way first, and what became of each pin."""

from dataclasses import dataclass, field

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from scheduler.pins import HeldTurn, HeldTurns, Outcome


@dataclass(slots=True)
class Block:
    block_id: int
    ref_cnt: int = 1


@dataclass(slots=True)
class Request:
    priority: int = 0


@dataclass
class Held:
    """Held turns, with a pool of blocks."""

    turns: HeldTurns = field(default_factory=HeldTurns)
    pool: list[Block] = field(default_factory=lambda: [Block(index) for index in range(20)])

    def hold(
        self,
        name: str,
        *,
        blocks: range = range(2),
        priority: int = 0,
        arrival_s: float = 0.0,
        conversation: str = "c",
        pinned: bool = True,
    ) -> HeldTurn:
        held = HeldTurn(
            name, conversation, priority, arrival_s, [self.pool[i] for i in blocks], until_s=1.0
        )
        self.turns.hold(held)
        if pinned:
            self.turns.pin(name, ttl_s=10.0, now_s=0.0)
        return held


def names(turns: list[HeldTurn]) -> list[str]:
    return [turn.request_id for turn in turns]


def test_a_pin_lasts_from_when_it_is_told() -> None:
    """A turn is held for a moment, pinned from then on for as long as it is said."""
    held = Held()
    pinned, unpinned = held.hold("pinned"), held.hold("unpinned", pinned=False)

    assert held.turns.expired(now_s=0.9) == []
    assert held.turns.expired(now_s=1.0) == [unpinned]
    assert held.turns.expired(now_s=10.0) == [pinned, unpinned]


def test_a_pin_can_be_ended_from_outside() -> None:
    """A time of nought ends a pin, and makes none of a turn that was only held."""
    held = Held()
    for name, is_pinned in (("pinned", True), ("unpinned", False)):
        turn = held.hold(name, pinned=is_pinned)
        held.turns.pin(name, ttl_s=0.0, now_s=0.5)
        assert turn in held.turns.expired(now_s=0.5)

    assert held.turns.totals.pins == 1


def test_a_turn_whose_next_one_has_come_is_held_until_that_runs() -> None:
    """However long it has to wait: it would be a pity now."""
    held = Held()
    held.hold("a").next_turn = Request()

    assert held.turns.expired(now_s=1e9) == []


def test_the_useless_go_first_then_the_worst_ranked_then_the_last_to_arrive() -> None:
    """What is not known to wait for a tool makes way before any pin; pins go by rank."""
    held = Held()
    held.hold("best", priority=1, arrival_s=9.0)
    held.hold("early", priority=2, arrival_s=1.0)
    held.hold("late", priority=2, arrival_s=2.0)
    held.hold("unpinned", priority=0, pinned=False)

    assert names(list(held.turns.worst_first())) == ["unpinned", "late", "early", "best"]


def test_a_held_turn_has_the_rank_of_the_next_one() -> None:
    """Once that has come: it waits, and its rank may change meanwhile."""
    held = Held()
    turn, following = held.hold("a", priority=5), Request(priority=1)
    turn.next_turn = following

    assert held.turns.outranked_by(Request(3), (3, 0.0)) == []
    following.priority = 7
    assert held.turns.outranked_by(Request(3), (3, 0.0)) == [turn]


def test_equals_and_the_next_turn_itself_end_no_pin() -> None:
    """A request of the same priority came later; the next one would take what it goes on from."""
    held = Held()
    turn = held.hold("a", priority=5, arrival_s=1.0)
    assert held.turns.outranked_by(Request(5), (5, 2.0)) == []

    turn.next_turn = Request(0)
    assert held.turns.outranked_by(turn.next_turn, (0, 2.0)) == []


def test_shared_blocks_count_once() -> None:
    """Conversations with the same beginning hold its blocks together, until the last has gone."""
    held = Held()
    first = held.hold("a", blocks=range(4))
    held.hold("b", blocks=range(2, 6))

    assert held.turns.num_blocks == 6
    held.turns.end(first, Outcome.HIT, now_s=1.0)
    assert held.turns.num_blocks == 4


def test_of_too_many_pins_the_worst_are_told() -> None:
    """Just so many that the blocks of the rest, shared ones once, are within the bound."""
    held = Held()
    held.hold("unpinned", blocks=range(20), pinned=False)
    held.hold("best", blocks=range(6), priority=1)
    held.hold("good", blocks=range(8), priority=2)
    held.hold("bad", blocks=range(10, 14), priority=3)
    held.hold("worst", blocks=range(10, 14), priority=4)

    assert held.turns.num_pinned_blocks == 12
    assert held.turns.too_many(12) == []
    assert names(held.turns.too_many(11)) == ["bad", "worst"]
    assert names(held.turns.too_many(7)) == ["good", "bad", "worst"]


def test_blocks_that_requests_use_are_not_idle() -> None:
    """What a running request has too would not be free without the pin."""
    held = Held()
    held.hold("a", blocks=range(4))
    held.pool[0].ref_cnt += 1

    assert (held.turns.num_blocks, held.turns.num_idle_blocks) == (4, 3)


def test_what_is_wasted_is_counted_in_blocks_and_seconds() -> None:
    """Only of pins, and only of those that were of no use."""
    held = Held()
    wasted, hit = held.hold("a", blocks=range(3)), held.hold("b", blocks=range(3))
    unpinned = held.hold("c", pinned=False)
    held.turns.end(wasted, Outcome.WASTED, now_s=4.0)
    held.turns.end(hit, Outcome.HIT, now_s=5.0)
    held.turns.end(unpinned, Outcome.WASTED, now_s=6.0)

    totals = held.turns.totals
    assert (totals.pins, totals.pin_hits, totals.pins_wasted) == (2, 1, 1)
    assert totals.wasted_block_s == 3 * 4.0


class AnyTurns(RuleBasedStateMachine):
    """Turns held, pinned and ended in any order."""

    live = Bundle("live")

    def __init__(self) -> None:
        super().__init__()
        self.held = Held()
        self.model: dict[str, HeldTurn] = {}
        self.count = 0

    @rule(
        target=live,
        first=st.integers(0, 15),
        size=st.integers(1, 4),
        conversation=st.sampled_from("ab"),
        pinned=st.booleans(),
    )
    def hold(self, first: int, size: int, conversation: str, pinned: bool) -> HeldTurn:  # noqa: FBT001
        self.count += 1
        turn = self.held.hold(
            f"turn {self.count}",
            blocks=range(first, first + size),
            conversation=conversation,
            pinned=pinned,
        )
        self.model[turn.request_id] = turn
        return turn

    @rule(turn=consumes(live), outcome=st.sampled_from(Outcome))
    def end(self, turn: HeldTurn, outcome: Outcome) -> None:
        self.held.turns.end(turn, outcome, now_s=1.0)
        del self.model[turn.request_id]

    @invariant()
    def what_is_held_is_what_was_not_ended(self) -> None:
        turns = self.held.turns
        blocks = {block.block_id for turn in self.model.values() for block in turn.blocks}
        assert (len(turns), turns.num_blocks) == (len(self.model), len(blocks))
        assert sorted(names(list(turns.worst_first()))) == sorted(self.model)
        for conversation in "ab":
            assert {turn.request_id for turn in turns.of(conversation)} == {
                name for name, turn in self.model.items() if turn.conversation == conversation
            }

    @invariant()
    def every_pin_ends_once(self) -> None:
        totals = self.held.turns.totals
        num_pinned = sum(turn.pinned_s is not None for turn in self.model.values())
        num_ended = totals.pin_hits + totals.pins_wasted + totals.pins_released
        assert totals.pins == num_pinned + num_ended


TestAnyTurns = AnyTurns.TestCase
