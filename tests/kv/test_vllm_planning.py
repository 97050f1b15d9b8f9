"""The connector beside the scheduler: what it offers, keeps, and plans for the workers."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from kv.settings import SwapSettings
from kv.swap_manager import SwapReport
from kv.swap_plan import BlockCopies, Direction, SwapPlan, Urgency
from kv.vllm_planning import SwapPlanning

BLOCK_TOKENS = 4


def make(
    *, num_host_blocks: int = 64, is_prefix_caching: bool = True, **parts: Any
) -> SwapPlanning:
    return SwapPlanning(
        replace(SwapSettings(1.0), **parts),
        num_host_blocks=num_host_blocks,
        block_tokens=BLOCK_TOKENS,
        is_prefix_caching=is_prefix_caching,
    )


def request(
    name: str, num_computed: int, *, num_tokens: int = 0, text: str = "same", priority: int = 0
) -> Any:
    """As much of vLLM's request as is looked at; equal texts have equal blocks."""
    num_tokens = num_tokens or num_computed + 1
    return SimpleNamespace(
        request_id=name,
        block_hashes=[f"{text} {index}" for index in range(num_tokens // BLOCK_TOKENS)],
        num_computed_tokens=num_computed,
        num_tokens=num_tokens,
        priority=priority,
    )


def back(one: Any) -> Any:
    """The request as it is once it has left: nothing of it is computed on the device."""
    return SimpleNamespace(**(vars(one) | {"num_computed_tokens": 0}))


def step(
    *, new: Sequence[Any] = (), cached: Sequence[Any] = (), resumed: Sequence[str] = ()
) -> Any:
    """vLLM's output of a scheduling step."""
    return SimpleNamespace(
        num_scheduled_tokens=dict.fromkeys([one.req_id for one in [*new, *cached]], 1),
        scheduled_new_reqs=new,
        scheduled_cached_reqs=SimpleNamespace(
            req_ids=[one.req_id for one in cached],
            new_block_ids=[one.block_ids for one in cached],
            num_computed_tokens=[one.num_computed_tokens for one in cached],
            resumed_req_ids=set(resumed),
        ),
    )


def scheduled(name: str, blocks: list[int] | None, num_computed: int = 0) -> Any:
    block_ids = None if blocks is None else (blocks,)
    return SimpleNamespace(req_id=name, block_ids=block_ids, num_computed_tokens=num_computed)


def only_copies(plan: SwapPlan) -> BlockCopies:
    [copies] = plan.copies
    return copies


def make_loads_slow(planning: SwapPlanning) -> None:
    """Measure loads that take far longer than a step."""
    running = step(cached=[scheduled("running", None)])
    planning.take_plan(running)
    planning.take_plan(running)
    report = SwapReport()
    report.blocks[Direction.IN], report.busy_s[Direction.IN] = 1, 1000.0
    planning.hear(report, ())


# --- leaving and coming back ----------------------------------------------------------------------


def copy_ahead(planning: SwapPlanning, victims: Iterable[tuple[Any, list[int]]]) -> None:
    """Offer victims with their block tables, one after another."""
    tables: dict[str, list[int]] = {}

    def requests() -> Iterator[Any]:
        for one, blocks in victims:
            tables[one.request_id] = blocks
            yield one

    planning.copy_ahead(requests(), tables.__getitem__)


def test_a_request_that_left_is_offered_all_that_was_computed() -> None:
    """Nine tokens go out as three blocks, and come back before the step that needs them."""
    planning, one = make(), request("a", 9)
    assert planning.swap_out(one, [10, 11, 12])
    out = only_copies(planning.take_plan(step()))

    assert planning.offer(back(one), 0) == (9, False)
    planning.accept(back(one), [20, 21, 22], 9)

    assert (out.direction, out.device_blocks) == (Direction.OUT, [10, 11, 12])
    assert only_copies(planning.take_plan(step())) == BlockCopies(
        Direction.IN, Urgency.STEP, [20, 21, 22], out.host_blocks
    )
    assert planning.num_host_blocks_used == 0


def test_only_what_the_device_has_not_is_loaded() -> None:
    """What vLLM's prefix cache still has is neither offered nor loaded."""
    planning, one = make(), request("a", 9)
    planning.swap_out(one, [10, 11, 12])
    out = only_copies(planning.take_plan(step()))

    assert planning.offer(back(one), 4) == (5, False)
    planning.accept(back(one), [10, 21, 22], 5)

    load = only_copies(planning.take_plan(step()))
    assert (load.device_blocks, load.host_blocks) == ([21, 22], out.host_blocks[1:])


def test_the_last_token_is_never_offered() -> None:
    """A request whose KV is all there still computes a token, to have something to sample from."""
    planning = make()
    planning.finish(request("a", 8), [10, 11])

    assert planning.offer(request("b", 0, num_tokens=8), 0) == (7, False)
    assert planning.offer(request("b", 0, num_tokens=8), 4) == (3, False)
    assert planning.offer(request("c", 0, num_tokens=9), 8) == (0, False)


def test_a_request_that_needs_no_load_is_kept_no_longer() -> None:
    """If the prefix cache has everything, or vLLM wants nothing, host memory can be reused."""
    planning, one = make(), request("a", 8)
    planning.swap_out(one, [10, 11])
    assert planning.num_host_blocks_used == 2

    assert planning.offer(back(one), 8) == (0, False)
    planning.accept(back(one), [10, 11, 12], 0)

    assert planning.num_host_blocks_used == 0


def test_an_offer_may_be_made_again() -> None:
    """Where vLLM finds no blocks for it, the request stays kept and is offered the same later."""
    planning, one = make(), request("a", 9)
    planning.swap_out(one, [10, 11, 12])

    assert [planning.offer(back(one), 0) for _ in range(3)] == [(9, False)] * 3
    assert planning.num_host_blocks_used == 3


# --- loading beside the step ----------------------------------------------------------------------


def test_a_long_load_goes_on_beside_the_step() -> None:
    """Where waiting would cost the running requests more than a step, nobody waits."""
    planning, one = make(), request("a", 9)
    make_loads_slow(planning)
    planning.swap_out(one, [10, 11, 12])
    planning.take_plan(step())

    assert planning.offer(back(one), 0) == (9, True)
    planning.accept(back(one), [20, 21, 22], 9)

    load = only_copies(planning.take_plan(step()))
    assert (load.urgency, load.request_id) == (Urgency.REQUEST, "a")
    assert planning.totals.async_swaps_in == 1
    # Once it has landed, vLLM asks again for the rest of its blocks, with nothing to load.
    planning.hear(None, {"a"})
    planning.accept(one, [20, 21, 22, 23], 0)
    assert planning.take_plan(step()).copies == []


def test_without_threads_every_load_is_waited_for() -> None:
    """A copy that the engine's own thread makes cannot go on beside a step."""
    planning = make(threads=False)
    make_loads_slow(planning)
    planning.swap_out(request("a", 9), [10, 11, 12])

    assert planning.offer(request("a", 0, num_tokens=10), 0) == (9, False)


@pytest.mark.parametrize("how", ["landed", "aborted"])
def test_a_shared_prefix_is_loaded_once(how: str) -> None:
    """While one brings blocks, others who want them wait; not longer than until it is over."""
    planning = make()
    make_loads_slow(planning)
    planning.finish(request("before", 8), [10, 11])
    first, second = (request(name, 0, num_tokens=12) for name in ("a", "b"))
    assert planning.offer(first, 0) == (8, True)
    planning.accept(first, [20, 21, 22], 8)

    assert planning.offer(second, 0) == (None, False)
    assert planning.offer(request("c", 0, num_tokens=12, text="other"), 0) == (0, False)
    if how == "landed":
        planning.hear(None, {"a"})
    else:
        planning.finish(first, [20, 21, 22])

    assert planning.offer(second, 0) == (8, True)


def test_blocks_that_one_waits_for_keep_nobody_who_waits_too() -> None:
    """A load before the step is done when the next request is asked: it loads for itself."""
    planning = make()
    planning.finish(request("before", 8), [10, 11])
    first, second = (request(name, 0, num_tokens=12) for name in ("a", "b"))
    assert planning.offer(first, 0) == (8, False)
    planning.accept(first, [20, 21, 22], 8)

    assert planning.offer(second, 0) == (8, False)


def test_an_aborted_load_keeps_nothing() -> None:
    """What was on its way to a request that ended is not its KV: nothing is copied from it."""
    planning = make()
    make_loads_slow(planning)
    one = request("a", 9)
    planning.swap_out(one, [10, 11, 12])
    planning.offer(back(one), 0)
    planning.accept(back(one), [20, 21, 22], 9)
    planning.take_plan(step())
    planning.forget_all()  # or it would not be sent for being there already

    planning.finish(one, [20, 21, 22])

    assert planning.take_plan(step()).copies == []
    assert planning.num_host_blocks_used == 0


# --- what outlives a request ----------------------------------------------------------------------


def test_the_next_turn_finds_what_the_last_one_computed() -> None:
    """A finished request's full blocks are sent at leisure, for whoever has its prefix."""
    planning = make()
    planning.finish(request("turn 1", 10), [10, 11, 12])

    out = only_copies(planning.take_plan(step()))
    turn = request("turn 2", 0, num_tokens=20)
    assert planning.offer(turn, 0) == (8, False)
    planning.accept(turn, [20, 21, 22, 23, 24], 8)
    load = only_copies(planning.take_plan(step()))

    assert (out.urgency, out.device_blocks) == (Urgency.NOBODY, [10, 11])
    assert (load.device_blocks, load.host_blocks) == ([20, 21], out.host_blocks)
    assert (planning.totals.blocks_found, planning.totals.swaps_in) == (2, 0)


def test_blocks_that_host_memory_has_are_not_sent_again() -> None:
    """A request that leaves twice sends what it computed in between."""
    planning, one = make(), request("a", 8)
    planning.swap_out(one, [10, 11])
    planning.take_plan(step())
    planning.offer(back(one), 0)
    planning.accept(back(one), [20, 21, 22], 8)
    planning.take_plan(step())

    planning.swap_out(request("a", 13), [20, 21, 22, 23])

    assert only_copies(planning.take_plan(step())).device_blocks == [22, 23]


@pytest.mark.parametrize(
    "changes", [{"is_prefix_caching": False}, {"reuse": False, "copy_ahead": False}], ids=str
)
def test_without_reuse_or_prefix_caching_a_finished_request_leaves_nothing(
    changes: dict[str, bool],
) -> None:
    """Nobody could use what it leaves."""
    planning = make(**changes)
    planning.finish(request("a", 8), [10, 11])

    assert planning.take_plan(step()).copies == []
    assert planning.offer(request("b", 0, num_tokens=12), 0) == (0, False)


def test_without_prefix_caching_each_has_its_own_blocks() -> None:
    """What the engine may not share is not shared here; a request that comes back has its own."""
    planning = make(is_prefix_caching=False)
    planning.swap_out(request("a", 9), [10, 11, 12])

    assert planning.offer(request("b", 0, num_tokens=10), 0) == (0, False)
    assert planning.offer(request("a", 0, num_tokens=10), 0) == (9, False)


def test_a_finished_request_relies_on_nothing() -> None:
    """One that ends while it is swapped out gives its host memory up, but may still be found."""
    planning, one = make(), request("a", 8)
    planning.swap_out(one, [10, 11])

    planning.finish(back(one), [])

    assert planning.num_host_blocks_used == 0
    assert planning.offer(request("b", 0, num_tokens=12), 0) == (8, False)


# --- copy-ahead -----------------------------------------------------------------------------------


def test_likely_victims_are_copied_ahead_but_for_their_last_block() -> None:
    """Full blocks never change, so they are sent while nobody waits, and only once."""
    planning, one = make(), request("a", 9)

    copy_ahead(planning, [(one, [10, 11, 12])])
    copy_ahead(planning, [(one, [10, 11, 12])])
    ahead = only_copies(planning.take_plan(step()))
    planning.swap_out(one, [10, 11, 12])
    rest = only_copies(planning.take_plan(step()))

    assert (ahead.urgency, ahead.device_blocks) == (Urgency.NOBODY, [10, 11])
    assert (rest.urgency, rest.device_blocks) == (Urgency.NOBODY_YET, [12])


def test_what_grew_since_is_copied_ahead_too() -> None:
    """A victim that runs on has its new full blocks sent after those sent before."""
    planning = make()
    copy_ahead(planning, [(request("a", 8), [10, 11])])
    planning.take_plan(step())

    copy_ahead(planning, [(request("a", 13), [10, 11, 12, 13])])

    assert only_copies(planning.take_plan(step())).device_blocks == [12]


def test_copying_ahead_is_bounded_and_asks_for_no_more_victims_than_it_sends() -> None:
    """While no rates are known 32 blocks go a step; further victims are not even looked for."""
    planning = make(num_host_blocks=128)
    num_asked = 0

    def victims() -> Iterator[tuple[Any, list[int]]]:
        nonlocal num_asked
        for number in range(9):
            num_asked += 1
            first = 16 * number
            yield request(f"{number}", 64, text=f"{number}"), list(range(first, first + 16))

    copy_ahead(planning, victims())

    sent = [block for copies in planning.take_plan(step()).copies for block in copies.device_blocks]
    assert sent == list(range(32))
    assert num_asked == 2


def test_nothing_is_copied_ahead_while_much_is_on_its_way() -> None:
    """Copies that nobody waits for do not pile up before those that somebody may wait for."""
    planning = make()
    report = SwapReport(num_pending_blocks=4 * 32 + 1)
    planning.hear(report, ())

    copy_ahead(planning, [(request("a", 8), [10, 11])])
    assert planning.take_plan(step()).copies == []

    planning.hear(None, ())
    copy_ahead(planning, [(request("a", 8), [10, 11])])
    assert only_copies(planning.take_plan(step())).device_blocks == [10, 11]


def test_a_slow_device_copies_little_ahead() -> None:
    """Once rates are known, copying ahead takes a small share of a step, but at least a block."""
    planning = make()
    make_loads_slow(planning)
    report = SwapReport()
    report.blocks[Direction.OUT], report.busy_s[Direction.OUT] = 1, 1000.0
    planning.hear(report, ())

    copy_ahead(planning, [(request("a", 8), [10, 11])])

    assert only_copies(planning.take_plan(step())).device_blocks == [10]


def test_copying_ahead_overwrites_only_what_matters_less() -> None:
    """What is kept for a better priority stays; worse goes, the worst first."""
    planning = make(num_host_blocks=2)
    copy_ahead(planning, [(request("a", 8, text="better", priority=1), [10, 11])])
    planning.take_plan(step())

    copy_ahead(planning, [(request("b", 8, text="worse", priority=2), [20, 21])])
    assert planning.take_plan(step()).copies == []

    copy_ahead(planning, [(request("c", 8, text="best", priority=0), [30, 31])])
    assert only_copies(planning.take_plan(step())).device_blocks == [30, 31]


def test_copy_ahead_can_be_switched_off() -> None:
    """Then no victim is looked for."""
    planning = make(copy_ahead=False)

    def victims() -> Iterator[tuple[Any, list[int]]]:
        pytest.fail("asked for a victim")
        yield request("a", 8), [10, 11]

    copy_ahead(planning, victims())


# --- step by step ---------------------------------------------------------------------------------


def test_a_step_names_the_blocks_that_it_may_write() -> None:
    """Computed blocks are only read: a new request's, and one's that is back; new ones written."""
    new = scheduled("new", [1, 2, 3], num_computed=9)
    resumed = scheduled("back", [4, 5, 6], num_computed=8)
    grown = scheduled("grown", [7], num_computed=12)
    same = scheduled("same", None, num_computed=5)

    plan = make().take_plan(step(new=[new], cached=[resumed, grown, same], resumed=["back"]))

    assert plan.written_blocks == [3, 6, 7]


def test_blocks_that_never_reached_host_memory_are_forgotten() -> None:
    """A failed copy out is not offered, nor what comes after it, and is counted."""
    planning, one = make(), request("a", 9)
    planning.swap_out(one, [10, 11, 12])
    out = only_copies(planning.take_plan(step()))

    planning.hear(SwapReport(failed_host_blocks={out.host_blocks[1]}), ())

    assert planning.offer(back(one), 0) == (4, False)
    assert planning.totals.failed_blocks == 1


def test_what_failed_to_be_copied_ahead_is_copied_again() -> None:
    """A victim whose early copy failed is not taken for safe."""
    planning, one = make(), request("a", 8)
    copy_ahead(planning, [(one, [10, 11])])
    out = only_copies(planning.take_plan(step()))
    planning.hear(SwapReport(failed_host_blocks={out.host_blocks[0]}), ())

    copy_ahead(planning, [(one, [10, 11])])

    assert only_copies(planning.take_plan(step())).device_blocks == [10]


def test_what_was_copied_around_a_failed_load_is_forgotten() -> None:
    """What may have been computed from wrong blocks is offered to nobody; what is old stays."""
    planning = make()
    planning.finish(request("old", 8, text="old"), [1, 2])
    for _ in range(5):
        planning.take_plan(step())
    planning.finish(request("young", 8, text="young"), [3, 4])
    copy_ahead(planning, [(request("victim", 8, text="ahead"), [5, 6])])
    planning.take_plan(step())

    planning.forget_recent()

    assert planning.offer(request("a", 0, num_tokens=12, text="old"), 0) == (8, False)
    assert planning.offer(request("b", 0, num_tokens=12, text="young"), 0) == (0, False)
    copy_ahead(planning, [(request("victim", 8, text="ahead"), [5, 6])])
    assert only_copies(planning.take_plan(step())).device_blocks == [5, 6]


def test_everything_can_be_forgotten() -> None:
    """After a reset nothing is offered, and copied-ahead blocks would be sent again."""
    planning, one = make(), request("a", 8, text="kept")
    planning.swap_out(one, [1, 2])
    copy_ahead(planning, [(request("b", 8, text="ahead"), [3, 4])])
    planning.take_plan(step())

    planning.forget_all()

    assert planning.offer(back(one), 0) == (0, False)
    assert planning.num_host_blocks_used == 0
    copy_ahead(planning, [(request("b", 8, text="ahead"), [3, 4])])
    assert only_copies(planning.take_plan(step())).device_blocks == [3, 4]


def test_reports_add_up() -> None:
    """What workers measured is summed, and predicts what a swap will cost."""
    planning = make()
    for _ in range(2):
        report = SwapReport(stall_s=0.5, conflicts=1, failed_host_blocks={7})
        report.descriptors = {Direction.OUT: 3, Direction.IN: 4}
        report.load_waits_s = [0.0005, 0.05]
        report.blocks = {Direction.OUT: 10, Direction.IN: 10}
        report.busy_s = {Direction.OUT: 0.1, Direction.IN: 0.2}
        planning.hear(report, ())
    planning.hear(None, ())

    totals = planning.totals
    assert (totals.stall_s, totals.conflicts, totals.failed_blocks) == (1.0, 2, 2)
    assert (totals.descriptors_out, totals.descriptors_in) == (6, 8)
    assert (totals.load_waits, totals.load_waits_1ms, totals.load_waits_10ms) == (4, 2, 2)
    assert totals.load_waits_100ms == 4
    assert totals.load_wait_s == pytest.approx(0.101)
    assert planning.predicted_swap_s(10) == pytest.approx(0.5)
    assert planning.predicted_load_s(10) == pytest.approx(0.2)
