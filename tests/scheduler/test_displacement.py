"""Who makes way for a better-ranked request that waits."""

import heapq
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from scheduler.displacement import (
    NO_DISPLACEMENT,
    Displacement,
    Room,
    RunningRequest,
    WaitingRequest,
    choose_displaced,
    ranked,
)


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


FULL = Room(num_slots=0, num_blocks=100, num_tokens=100)


def test_the_worst_ranked_makes_way_for_a_slot() -> None:
    """With all slots taken, the last in rank leaves, and only that one."""
    seated = [running("a", 1), running("b", 2), running("c", 2)]

    assert choose_displaced([waiting("new", 0)], seated, FULL) == Displacement(victims=("c",))


def test_an_equal_priority_displaces_nobody() -> None:
    """Only a strictly lower priority number takes a running request's place."""
    assert choose_displaced([waiting("new", 2)], [running("a", 2)], FULL) == NO_DISPLACEMENT


def test_with_room_nobody_leaves() -> None:
    """A request that fits as it is displaces nobody."""
    room = Room(num_slots=1, num_blocks=5, num_tokens=10)

    choice = choose_displaced([waiting("new", 0, num_blocks=5)], [running("a", 9)], room)

    assert choice == NO_DISPLACEMENT


def test_one_that_would_not_fit_anyway_displaces_nobody() -> None:
    """If not even all it outranks would make room, nobody leaves for it."""
    seated = [running("kept", 0, blocks=blocks(0, 50)), running("low", 9, blocks=blocks(50, 5))]
    room = Room(num_slots=3, num_blocks=2, num_tokens=100)

    choice = choose_displaced([waiting("new", 1, num_blocks=8)], seated, room)

    assert choice == NO_DISPLACEMENT


def test_as_many_leave_as_the_blocks_need_and_no_more() -> None:
    """Victims go from the worst rank on until the blocks suffice; a needless one stays."""
    seated = [
        running("big", 3, blocks=blocks(0, 10)),
        running("small", 4, blocks=blocks(10, 1)),
        running("medium", 5, blocks=blocks(11, 4)),
    ]
    room = Room(num_slots=3, num_blocks=0, num_tokens=100)

    assert choose_displaced([waiting("new", 0, num_blocks=5)], seated, room).victims == (
        "medium",
        "small",
    )
    assert choose_displaced([waiting("new", 0, num_blocks=9)], seated, room).victims == ("big",)


def test_a_shared_block_is_free_only_with_its_last_user() -> None:
    """Blocks that two requests share count once, and only when both have gone."""
    shared = blocks(0, 4, ref_cnt=2)
    seated = [
        running("one", 5, blocks=[*shared, Block(10)]),
        running("two", 5, blocks=[*shared, Block(11)]),
    ]
    room = Room(num_slots=2, num_blocks=0, num_tokens=100)

    assert choose_displaced([waiting("new", 0, num_blocks=1)], seated, room).victims == ("two",)
    assert set(choose_displaced([waiting("new", 0, num_blocks=6)], seated, room).victims) == {
        "one",
        "two",
    }
    assert not choose_displaced([waiting("new", 0, num_blocks=7)], seated, room).victims


def test_blocks_that_running_requests_grow_into_are_not_free() -> None:
    """What the running will take in this step is gone before the waiting are looked at."""
    seated = [running("grows", 1, num_growth_blocks=1), running("low", 9, blocks=blocks(0, 3))]
    room = Room(num_slots=1, num_blocks=2, num_tokens=100)

    assert choose_displaced([waiting("new", 0, num_blocks=2)], seated, room).victims == ("low",)


def test_the_watermark_stays_free_unless_nothing_else_runs() -> None:
    """While others run, vLLM keeps some blocks free, so an admission has to leave them."""
    room = Room(num_slots=2, num_blocks=3, num_tokens=100, watermark_blocks=2)
    two = [running("better", 0), running("low", 9, blocks=blocks(0, 2))]

    assert choose_displaced([waiting("new", 1, num_blocks=2)], two, room).victims == ("low",)
    assert choose_displaced([waiting("new", 1, num_blocks=4)], two, room) == NO_DISPLACEMENT
    assert choose_displaced([waiting("new", 1, num_blocks=5)], two[1:], room).victims == ("low",)


def test_a_low_prefill_is_held_for_one_step_not_displaced() -> None:
    """If only tokens are short, a low prefill sits the step out; decodes go on."""
    seated = [running("decode", 5), running("prefill", 9, num_tokens=64)]
    room = Room(num_slots=1, num_blocks=10, num_tokens=64)

    choice = choose_displaced([waiting("new", 0, num_tokens=20)], seated, room)

    assert choice == Displacement(held=("prefill",))


def test_a_better_ranked_prefill_is_never_held() -> None:
    """Tokens that a better-ranked request takes are not to be had, so nobody is disturbed."""
    seated = [running("better", 0, num_tokens=64), running("low", 9, blocks=blocks(0, 9))]
    room = Room(num_slots=0, num_blocks=10, num_tokens=64)

    assert choose_displaced([waiting("new", 1, num_tokens=20)], seated, room) == NO_DISPLACEMENT


def test_without_chunks_a_prompt_needs_all_its_tokens() -> None:
    """Where prefills are not chunked, a request that gets too few tokens displaces nobody."""
    seated = [running("better", 0, num_tokens=50), running("low", 9)]
    room = Room(num_slots=0, num_blocks=10, num_tokens=64)
    whole = waiting("new", 1, num_tokens=20, min_tokens=20)

    assert choose_displaced([whole], seated, room) == NO_DISPLACEMENT


def test_one_that_is_held_can_still_be_displaced_by_the_next() -> None:
    """A held request is the worst ranked: it is the first to leave when a slot is needed too."""
    seated = [running("decode", 5), running("prefill", 9, num_tokens=64)]
    room = Room(num_slots=1, num_blocks=10, num_tokens=64)
    two = [waiting("first", 0, num_tokens=20), waiting("second", 1, num_tokens=20)]

    assert choose_displaced(two, seated, room) == Displacement(victims=("prefill",))


def test_several_waiting_take_the_places_of_as_many() -> None:
    """Each waiting request in turn takes the worst place left, as long as it outranks it."""
    seated = [running("a", 1), running("b", 5), running("c", 6)]
    queue = [waiting("x", 0), waiting("y", 4), waiting("z", 7)]

    assert choose_displaced(queue, seated, FULL).victims == ("c", "b")


def test_the_queue_is_read_no_further_than_needed() -> None:
    """The first waiting request that outranks nobody ends the search."""
    read = []

    def queue() -> Iterator[WaitingRequest]:
        for priority in range(100):
            read.append(priority)
            yield waiting(f"w{priority}", priority)

    choose_displaced(queue(), [running("a", 1), running("b", 1)], FULL)

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
    choose = random.Random(seed)
    for _ in range(300):
        seated = _random_running(choose)
        queue = sorted(_random_waiting(choose), key=lambda one: one.priority)
        room = Room(
            num_slots=choose.randrange(3),
            num_blocks=choose.randrange(6),
            num_tokens=choose.choice([8, 32, 128]),
            watermark_blocks=choose.randrange(3),
        )

        choice = choose_displaced(iter(queue), seated, room)

        _check(choice, queue, seated, room)


def _random_running(choose: random.Random) -> list[RunningRequest]:
    shared = blocks(1000, choose.randrange(4))
    seated = []
    for index in range(choose.randrange(1, 7)):
        own = blocks(index * 10, choose.randrange(1, 5))
        if choose.random() < 0.5:
            own = [*shared, *own]
        one = running(
            f"r{index}",
            choose.randrange(5),
            blocks=own,
            num_growth_blocks=choose.randrange(2),
            num_tokens=choose.choice([1, 1, 8, 32]),
        )
        seated.append(one)
    users = Counter(block.block_id for one in seated for block in one.blocks)
    for one in seated:
        for block in one.blocks:
            assert isinstance(block, Block)
            block.ref_cnt = users[block.block_id]
    return sorted(seated, key=lambda one: one.priority)


def _random_waiting(choose: random.Random) -> list[WaitingRequest]:
    return [
        waiting(
            f"w{index}",
            choose.randrange(5),
            num_blocks=choose.randrange(8),
            num_tokens=choose.choice([1, 8, 32]),
        )
        for index in range(choose.randrange(1, 5))
    ]


def _check(
    choice: Displacement, queue: list[WaitingRequest], seated: list[RunningRequest], room: Room
) -> None:
    victims, held = set(choice.victims), set(choice.held)
    assert not victims & held
    disturbed = [one for one in seated if one.request_id in victims | held]
    if not disturbed:
        return
    admitted = _admitted(victims, queue, seated, room)
    assert admitted
    assert all(one.priority > admitted[0].priority for one in disturbed)
    if len(queue) == 1:
        needless = [name for name in victims if _admitted(victims - {name}, queue, seated, room)]
        assert not needless


def _admitted(
    victims: set[str], queue: list[WaitingRequest], seated: list[RunningRequest], room: Room
) -> list[WaitingRequest]:
    """Who gets a slot and blocks, in order, once the victims have gone."""
    staying = [one for one in seated if one.request_id not in victims]
    still_used = {block.block_id for one in staying for block in one.blocks}
    freed = {block.block_id for one in seated for block in one.blocks} - still_used
    num_slots = room.num_slots + len(victims)
    num_blocks = room.num_blocks + len(freed) - sum(one.num_growth_blocks for one in staying)
    admitted: list[WaitingRequest] = []
    for one in queue:
        watermark = room.watermark_blocks if staying or admitted else 0
        if num_slots < 1 or one.num_blocks + watermark > num_blocks:
            break
        num_slots, num_blocks = num_slots - 1, num_blocks - one.num_blocks
        admitted.append(one)
    return admitted
