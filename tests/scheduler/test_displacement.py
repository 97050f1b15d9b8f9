"""Who makes way for a better-ranked request that waits."""

import heapq
import random
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from scheduler.displacement import (
    NO_DISPLACEMENT,
    QUANTUM,
    Displacement,
    Room,
    RunningRequest,
    WaitingRequest,
    choose_displaced,
    quantum_steps,
    ranked,
)
from scheduler.switch_budget import UNLIMITED, Allowance


@dataclass
class Block:
    block_id: int
    ref_cnt: int = 1


def waiting(
    name: str, priority: int, *, num_blocks: int = 1, num_tokens: int = 1, min_tokens: int = 1
) -> WaitingRequest:
    return WaitingRequest(name, priority, num_blocks, num_tokens, min_tokens)


def running(
    name: str,
    priority: int,
    *,
    blocks: list[Block] | None = None,
    num_growth_blocks: int = 0,
    num_tokens: int = 1,
) -> RunningRequest:
    own = [Block(hash(name))] if blocks is None else blocks
    return RunningRequest(name, priority, own, num_growth_blocks, num_tokens)


def blocks(first: int, count: int, *, ref_cnt: int = 1) -> list[Block]:
    return [Block(first + index, ref_cnt) for index in range(count)]


@dataclass
class Free:
    """What is free before anybody has had anything of this step."""

    slots: int = 0
    blocks: int = 100
    tokens: int = 100
    watermark: int = 0
    uncounted_blocks: int = 0  # of them, told only when asked for


def choose(
    queue: Iterable[WaitingRequest],
    seated: list[RunningRequest],
    free: Free,
    allowance: Allowance = UNLIMITED,
) -> Displacement:
    """``seated`` from best rank to worst, as it reads best."""
    num_blocks = free.blocks - sum(one.num_growth_blocks for one in seated)
    room = Room(
        num_running=len(seated),
        num_slots=free.slots,
        num_blocks=num_blocks - free.uncounted_blocks,
        num_tokens=free.tokens - sum(one.num_tokens for one in seated),
        watermark_blocks=free.watermark,
        count_more_blocks=lambda: free.uncounted_blocks,
    )
    return choose_displaced(queue, reversed(seated), room, allowance)


def test_the_worst_ranked_makes_way_for_a_slot() -> None:
    """With all slots taken, the last in rank leaves, and only that one."""
    seated = [running("a", 1), running("b", 2), running("c", 2)]

    assert choose([waiting("new", 0)], seated, Free()) == Displacement(victims=("c",))


def test_an_equal_priority_displaces_nobody() -> None:
    """Only a strictly lower priority number takes a running request's place."""
    assert choose([waiting("new", 2)], [running("a", 2)], Free()) == NO_DISPLACEMENT


def test_with_room_nobody_leaves() -> None:
    """A request that fits as it is displaces nobody."""
    free = Free(slots=1, blocks=5, tokens=10)

    choice = choose([waiting("new", 0, num_blocks=5)], [running("a", 9)], free)

    assert choice == NO_DISPLACEMENT


def test_one_that_would_not_fit_anyway_displaces_nobody() -> None:
    """If not even all it outranks would make room, nobody leaves for it."""
    seated = [running("kept", 0, blocks=blocks(0, 50)), running("low", 9, blocks=blocks(50, 5))]
    free = Free(slots=3, blocks=2, tokens=100)

    choice = choose([waiting("new", 1, num_blocks=8)], seated, free)

    assert choice == NO_DISPLACEMENT


def test_as_many_leave_as_the_blocks_need_and_no_more() -> None:
    """Victims go from the worst rank on until the blocks suffice; a needless one stays."""
    seated = [
        running("big", 3, blocks=blocks(0, 10)),
        running("small", 4, blocks=blocks(10, 1)),
        running("medium", 5, blocks=blocks(11, 4)),
    ]
    free = Free(slots=3, blocks=0, tokens=100)

    assert choose([waiting("new", 0, num_blocks=5)], seated, free).victims == (
        "medium",
        "small",
    )
    assert choose([waiting("new", 0, num_blocks=9)], seated, free).victims == ("big",)


def test_a_shared_block_is_free_only_with_its_last_user() -> None:
    """Blocks that two requests share count once, and only when both have gone."""
    shared = blocks(0, 4, ref_cnt=2)
    seated = [
        running("one", 5, blocks=[*shared, Block(10)]),
        running("two", 5, blocks=[*shared, Block(11)]),
    ]
    free = Free(slots=2, blocks=0, tokens=100)

    assert choose([waiting("new", 0, num_blocks=1)], seated, free).victims == ("two",)
    assert set(choose([waiting("new", 0, num_blocks=6)], seated, free).victims) == {
        "one",
        "two",
    }
    assert not choose([waiting("new", 0, num_blocks=7)], seated, free).victims


def test_blocks_shared_with_the_newcomer_are_no_room_for_it() -> None:
    """A prefix that newcomer and victim share is freed and taken again: only the rest is gained."""
    shared = blocks(0, 4)
    seated = [running("low", 9, blocks=[*shared, Block(10)])]
    free = Free(slots=1, blocks=0)

    def newcomer(num_blocks: int) -> WaitingRequest:
        return WaitingRequest("new", 0, num_blocks, 1, 1, cached_blocks=shared)

    assert choose([newcomer(1)], seated, free).victims == ("low",)
    assert choose([newcomer(2)], seated, free) == NO_DISPLACEMENT


def test_blocks_that_running_requests_grow_into_are_not_free() -> None:
    """What the running will take in this step is gone before the waiting are looked at."""
    seated = [running("grows", 1, num_growth_blocks=1), running("low", 9, blocks=blocks(0, 3))]
    free = Free(slots=1, blocks=2, tokens=100)

    assert choose([waiting("new", 0, num_blocks=2)], seated, free).victims == ("low",)


def test_the_watermark_stays_free_unless_nothing_else_runs() -> None:
    """While others run, vLLM keeps some blocks free, so an admission has to leave them."""
    free = Free(slots=2, blocks=3, tokens=100, watermark=2)
    two = [running("better", 0), running("low", 9, blocks=blocks(0, 2))]

    assert choose([waiting("new", 1, num_blocks=2)], two, free).victims == ("low",)
    assert choose([waiting("new", 1, num_blocks=4)], two, free) == NO_DISPLACEMENT
    assert choose([waiting("new", 1, num_blocks=5)], two[1:], free).victims == ("low",)


def test_the_worst_ranked_leaves_when_the_running_lack_blocks() -> None:
    """If those that run ask for more blocks than there are, the last in rank makes way; not all."""
    seated = [running(name, 1, num_growth_blocks=2) for name in ("a", "b", "c")]

    assert choose([], seated, Free(blocks=5)).victims == ("c",)
    assert choose([], seated, Free(blocks=6)) == NO_DISPLACEMENT
    assert choose([], seated[:1], Free(blocks=0)) == NO_DISPLACEMENT


def test_a_low_prefill_is_held_for_one_step_not_displaced() -> None:
    """If only tokens are short, a low prefill sits the step out; decodes go on."""
    seated = [running("decode", 5), running("prefill", 9, num_tokens=64)]
    free = Free(slots=1, blocks=10, tokens=64)

    choice = choose([waiting("new", 0, num_tokens=20)], seated, free)

    assert choice == Displacement(held=("prefill",))


def test_a_better_ranked_prefill_is_never_held() -> None:
    """Tokens that a better-ranked request takes are not to be had, so nobody is disturbed."""
    seated = [running("better", 0, num_tokens=64), running("low", 9, blocks=blocks(0, 9))]
    free = Free(slots=0, blocks=10, tokens=64)

    assert choose([waiting("new", 1, num_tokens=20)], seated, free) == NO_DISPLACEMENT


def test_without_chunks_a_prompt_needs_all_its_tokens() -> None:
    """Where prefills are not chunked, a request that gets too few tokens displaces nobody."""
    seated = [running("better", 0, num_tokens=50), running("low", 9)]
    free = Free(slots=0, blocks=10, tokens=64)
    whole = waiting("new", 1, num_tokens=20, min_tokens=20)

    assert choose([whole], seated, free) == NO_DISPLACEMENT


def test_one_that_is_held_can_still_be_displaced_by_the_next() -> None:
    """A held request is the worst ranked: it is the first to leave when a slot is needed too."""
    seated = [running("decode", 5), running("prefill", 9, num_tokens=64)]
    free = Free(slots=1, blocks=10, tokens=64)
    two = [waiting("first", 0, num_tokens=20), waiting("second", 1, num_tokens=20)]

    assert choose(two, seated, free) == Displacement(victims=("prefill",))


def test_several_waiting_take_the_places_of_as_many() -> None:
    """Each waiting request in turn takes the worst place left, as long as it outranks it."""
    seated = [running("a", 1), running("b", 5), running("c", 6)]
    queue = [waiting("x", 0), waiting("y", 4), waiting("z", 7)]

    assert choose(queue, seated, Free()).victims == ("c", "b")


def test_the_queue_is_read_no_further_than_needed() -> None:
    """The first waiting request that outranks nobody ends the search."""
    read = []

    def queue() -> Iterator[WaitingRequest]:
        for priority in range(100):
            read.append(priority)
            yield waiting(f"w{priority}", priority)

    choose(queue(), [running("a", 1), running("b", 1)], Free())

    assert read == [0, 1]


@pytest.mark.parametrize("size", [0, 1, 2, 7, 100])
def test_a_heap_is_walked_in_order_and_left_alone(size: int) -> None:
    """Items come from least to greatest; the heap itself does not change."""
    heap = random.sample(range(1000), k=size)
    heapq.heapify(heap)
    before = list(heap)

    assert list(ranked(heap)) == sorted(heap)
    assert heap == before


def test_random_choices_are_fair_and_make_enough_room(seed: int) -> None:
    """Whatever runs and waits: victims are strictly worse, and all they left for then fit."""
    chance = random.Random(seed)
    for _ in range(300):
        seated = _random_running(chance)
        queue = sorted(_random_waiting(chance), key=lambda one: one.priority)
        free = Free(
            slots=chance.randrange(3),
            blocks=chance.randrange(6),
            tokens=chance.choice([8, 32, 128]),
            watermark=chance.randrange(3),
        )

        choice = choose(iter(queue), seated, free)

        _check(choice, queue, seated, free)
        free.uncounted_blocks = chance.randrange(8)
        assert choose(iter(queue), seated, free) == choice


def test_blocks_are_not_counted_while_there_are_enough() -> None:
    """Counting takes a while, so whoever fits without does not ask."""
    seated = [running("low", 9)]

    def count() -> int:
        raise AssertionError

    room = Room(1, num_slots=0, num_blocks=3, num_tokens=9, count_more_blocks=count)

    assert choose_displaced([waiting("new", 0, num_blocks=3)], seated, room).victims == ("low",)


def _random_running(chance: random.Random) -> list[RunningRequest]:
    shared = blocks(1000, chance.randrange(4))
    seated = []
    for index in range(chance.randrange(1, 7)):
        own = blocks(index * 10, chance.randrange(1, 5))
        if chance.random() < 0.5:
            own = [*shared, *own]
        one = running(
            f"r{index}",
            chance.randrange(5),
            blocks=own,
            num_growth_blocks=chance.randrange(2),
            num_tokens=chance.choice([1, 1, 8, 32]),
        )
        seated.append(one)
    users = Counter(block.block_id for one in seated for block in one.blocks)
    for one in seated:
        for block in one.blocks:
            assert isinstance(block, Block)
            block.ref_cnt = users[block.block_id]
    return sorted(seated, key=lambda one: one.priority)


def _random_waiting(chance: random.Random) -> list[WaitingRequest]:
    return [
        waiting(
            f"w{index}",
            chance.randrange(5),
            num_blocks=chance.randrange(8),
            num_tokens=chance.choice([1, 8, 32]),
        )
        for index in range(chance.randrange(1, 5))
    ]


def _check(
    choice: Displacement, queue: list[WaitingRequest], seated: list[RunningRequest], free: Free
) -> None:
    victims, held = set(choice.victims), set(choice.held)
    assert not victims & held
    left_for_the_running = set(choose([], seated, free).victims)
    left_for_the_waiting = (victims | held) - left_for_the_running
    if not left_for_the_waiting:
        return
    admitted = _admitted(victims, queue, seated, free)
    assert admitted
    assert all(
        one.priority > admitted[0].priority
        for one in seated
        if one.request_id in left_for_the_waiting
    )
    if len(queue) == 1 and not left_for_the_running:
        needless = [name for name in victims if _admitted(victims - {name}, queue, seated, free)]
        assert not needless


def _admitted(
    victims: set[str], queue: list[WaitingRequest], seated: list[RunningRequest], free: Free
) -> list[WaitingRequest]:
    """Who gets a slot and blocks, in order, once the victims have gone."""
    staying = [one for one in seated if one.request_id not in victims]
    still_used = {block.block_id for one in staying for block in one.blocks}
    given_up = {block.block_id for one in seated for block in one.blocks} - still_used
    num_slots = free.slots + len(victims)
    num_blocks = free.blocks + len(given_up) - sum(one.num_growth_blocks for one in staying)
    admitted: list[WaitingRequest] = []
    for one in queue:
        watermark = free.watermark if staying or admitted else 0
        if num_slots < 1 or one.num_blocks + watermark > num_blocks:
            break
        num_slots, num_blocks = num_slots - 1, num_blocks - one.num_blocks
        admitted.append(one)
    return admitted


# --- the quantum ----------------------------------------------------------------------------------


def in_quantum(
    name: str, priority: int, *, num_tokens: int = 1, num_growth_blocks: int = 0
) -> RunningRequest:
    one = running(name, priority, num_tokens=num_tokens, num_growth_blocks=num_growth_blocks)
    return replace(one, is_in_quantum=True)


def displaced(name: str, priority: int) -> WaitingRequest:
    return replace(waiting(name, priority), was_displaced=True)


def test_one_that_was_displaced_waits_for_a_quantum_to_end() -> None:
    """It takes the place of the worst ranked that has run its quantum, or of nobody."""
    seated = [running("better", 3), in_quantum("worst", 9)]

    assert choose([displaced("back", 0)], seated, Free()).victims == ("better",)
    assert choose([displaced("back", 0)], seated[1:], Free()) == NO_DISPLACEMENT


def test_a_newcomer_heeds_no_quantum() -> None:
    """One that was never displaced takes the worst place, however new its holder is to it."""
    seated = [running("better", 3), in_quantum("worst", 9)]

    assert choose([waiting("new", 0)], seated, Free()).victims == ("worst",)


def test_a_prefill_is_held_also_within_its_quantum() -> None:
    """Sitting a step out is no displacement: it costs no copy."""
    seated = [in_quantum("prefill", 9, num_tokens=64)]
    free = Free(slots=1, blocks=10, tokens=64)

    assert choose([displaced("back", 0)], seated, free) == Displacement(held=("prefill",))


def test_where_blocks_are_short_those_within_their_quantum_go_last() -> None:
    """But they go: somebody must get on."""
    seated = [running("a", 1, num_growth_blocks=2), in_quantum("b", 9, num_growth_blocks=2)]

    assert choose([], seated, Free(blocks=2)).victims == ("a",)
    both_new = [replace(one, is_in_quantum=True) for one in seated]
    assert choose([], both_new, Free(blocks=2)).victims == ("b",)


def test_a_holder_of_blocks_is_admitted_before_better_ones_whomever_it_outranks() -> None:
    """It has its slot and fits, so it is in nobody's way, and the next makes room for itself."""
    holder = WaitingRequest("landed", 9, 1, 1, 1, is_holder=True, has_slot=True)
    free = Free(slots=0, blocks=2)

    assert choose([holder, waiting("new", 0)], [running("low", 5)], free).victims == ("low",)


def test_a_load_begins_only_beside_what_prefills_still_need() -> None:
    """Blocks reserved for a prefill count as free only if that prefill makes way."""
    prefill = replace(running("prefill", 9, num_tokens=8), num_reserved_blocks=5)
    load = replace(waiting("load", 0, num_blocks=2), is_load=True)
    room = Room(num_running=1, num_slots=1, num_blocks=4, num_tokens=50, reserved_blocks=5)

    assert choose_displaced([load], [prefill], room).victims == ("prefill",)
    assert choose_displaced([waiting("new", 0, num_blocks=2)], [prefill], room) == NO_DISPLACEMENT


def test_a_quantum_lasts_as_long_as_its_switch_was_dear() -> None:
    """So many steps at least, and so many times the switch's own time; unknown costs count as 0."""
    assert quantum_steps(0.0, 0.0) == quantum_steps(1.0, 0.0) == QUANTUM
    assert quantum_steps(0.001, 0.01) == QUANTUM
    assert quantum_steps(0.025, 0.01) == 2.5 * QUANTUM


# --- the bound on switches ------------------------------------------------------------------------


def test_one_that_may_displace_nobody_waits_and_is_named() -> None:
    """So do those behind it: they are not admitted before it."""
    seated = [running("a", 5), running("b", 5)]
    queue = [waiting("first", 0), waiting("second", 0)]

    choice = choose(queue, seated, Free(), Allowance(new=0, returning=0))

    assert choice == Displacement(put_off=("first",))


def test_newcomers_may_displace_where_those_that_ran_before_may_not() -> None:
    """Each has its own limit, and what either displaces counts against both."""
    seated = [running("a", 5), running("b", 5), running("c", 5)]
    allowance = Allowance(new=2, returning=1)

    one_of_each = choose([displaced("back", 0), waiting("new", 1)], seated, Free(), allowance)
    two_back = choose([displaced("back", 0), displaced("too", 1)], seated, Free(), allowance)

    assert one_of_each.victims == ("c", "b")
    assert two_back == Displacement(victims=("c",), put_off=("too",))


def test_one_that_needs_several_to_leave_has_all_of_them_or_nobody() -> None:
    """Nobody leaves for a request that is put off."""
    seated = [running("a", 5, blocks=blocks(0, 2)), running("b", 5, blocks=blocks(2, 2))]
    big = waiting("big", 0, num_blocks=4)
    free = Free(slots=1, blocks=0)

    assert choose([big], seated, free, Allowance(new=1)) == Displacement(put_off=("big",))
    assert choose([big], seated, free, Allowance(new=2)).victims == ("b", "a")


def test_one_that_would_not_fit_anyway_is_not_put_off() -> None:
    """What the bound keeps nobody from is not counted against it."""
    huge = waiting("huge", 0, num_blocks=400)

    assert choose([huge], [running("a", 5)], Free(), Allowance(new=0)) == NO_DISPLACEMENT


def test_sitting_a_step_out_is_no_switch() -> None:
    """A prefill is held for a better one whatever the bound says."""
    free = Free(slots=1, blocks=10, tokens=64)
    seated = [running("prefill", 9, num_tokens=64)]

    choice = choose([waiting("new", 0)], seated, free, Allowance(new=0, returning=0))

    assert choice == Displacement(held=("prefill",))


def test_who_leaves_for_lack_of_blocks_leaves_in_any_case_and_counts() -> None:
    """Somebody must get on; what that takes is gone for those that can wait."""
    seated = [running("a", 1), running("b", 8), running("c", 9, num_growth_blocks=2)]
    short = Free(blocks=1)

    assert choose([], seated, short, Allowance(new=0)).victims == ("c",)
    free = Free(slots=-1, blocks=1)
    choice = choose([waiting("new", 0)], seated, free, Allowance(new=1))
    assert choice == Displacement(victims=("c",), put_off=("new",))


@given(num_slots=st.integers(1, 4), seed=st.integers(0, 2**32), period=st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_whoever_is_displaced_by_a_returner_has_run_a_quantum(
    num_slots: int, seed: int, period: int
) -> None:
    """Whatever an adversary does to the ranks, runs are cut short by newcomers alone.

    So no two requests displace each other within a quantum: the second of the two is a returner.
    """
    slots = Slots(num_slots)
    chance = random.Random(seed)

    for step in range(200):
        if step % period == 0:
            priorities = {name: chance.randrange(4) for name in slots.names}
        slots.step(priorities)

    assert all(num_short <= num_newcomers for num_short, num_newcomers in slots.cut_short)
    assert sum(num_newcomers for _, num_newcomers in slots.cut_short) <= len(slots.names)


class Slots:
    """An engine with slots alone, which obeys the choice and admits in order of rank."""

    def __init__(self, num_slots: int) -> None:
        self.names = [f"r{index}" for index in range(8)]
        self.cut_short: list[tuple[int, int]] = []  # by step: runs cut short, newcomers admitted
        self._num_slots = num_slots
        self._step = 0
        self._admitted_at: dict[str, int] = {}
        self._displaced: set[str] = set()

    def step(self, priorities: dict[str, int]) -> None:
        self._step += 1
        by_rank = sorted(self.names, key=lambda name: (priorities[name], name))
        seated = [
            replace(running(name, priorities[name]), is_in_quantum=self._is_in_quantum(name))
            for name in by_rank
            if name in self._admitted_at
        ]
        queue = [
            replace(waiting(name, priorities[name]), was_displaced=name in self._displaced)
            for name in by_rank
            if name not in self._admitted_at
        ]
        num_free = self._num_slots - len(seated)
        victims = choose(queue, seated, Free(slots=num_free)).victims
        admitted = queue[: num_free + len(victims)]
        self.cut_short.append(
            (
                sum(self._is_in_quantum(name) for name in victims),
                sum(not one.was_displaced for one in admitted),
            )
        )
        for name in victims:
            del self._admitted_at[name]
        self._displaced.update(victims)
        self._admitted_at |= {one.request_id: self._step for one in admitted}

    def _is_in_quantum(self, name: str) -> bool:
        return self._step < self._admitted_at[name] + QUANTUM
