"""The bookkeeping of swaps: what host memory keeps for whom, and what the next step copies."""

from kv.block_groups import BlockGroupPool
from kv.host_cache import HostCache
from kv.swap import RequestKV, SwapPlanner
from kv.swap_plan import BlockCopies, Direction, Urgency

BLOCK_TOKENS = 4


def make_planner(num_host_blocks: int = 8, *, reuse: bool = True) -> SwapPlanner:
    cache = HostCache(BlockGroupPool("host", num_host_blocks))
    return SwapPlanner(cache, BLOCK_TOKENS, reuse=reuse)


def kv(
    name: str,
    device_blocks: list[int],
    num_tokens: int,
    *,
    priority: int = 0,
    tokens: str | None = None,
) -> RequestKV:
    """A request's KV; requests of the same ``tokens`` have the same prefix."""
    keys = [(tokens or name, index) for index in range(num_tokens // BLOCK_TOKENS)]
    return RequestKV(name, keys, device_blocks, num_tokens, priority)


def copies(planner: SwapPlanner) -> list[BlockCopies]:
    return planner.take_plan().copies


def test_swap_out_covers_the_partly_full_last_block() -> None:
    """Nine tokens in blocks of four are three blocks, however long the block table is."""
    planner = make_planner()

    assert planner.swap_out(kv("a", [10, 11, 12, 13], 9))

    [out] = copies(planner)
    assert (out.direction, out.device_blocks) == (Direction.OUT, [10, 11, 12])
    assert planner.num_kept_tokens("a") == 9


def test_blocks_whose_tokens_are_not_known_yet_are_kept_for_the_request_alone() -> None:
    """Scheduling ahead, a block may be full before its last token, and so its key, is known."""
    planner = make_planner()

    planner.swap_out(RequestKV("a", [("a", 0)], [10, 11], 8, 0))

    assert planner.num_kept_tokens("a") == 8
    assert planner.num_found_blocks([("a", 0), ("a", 1)], 0) == 1


def test_swap_in_loads_only_what_the_device_has_not() -> None:
    """Tokens that the prefix cache still has are not loaded; the rest goes to its new blocks."""
    planner = make_planner()
    planner.swap_out(kv("a", [10, 11, 12], 9))
    [out] = copies(planner)

    planner.swap_in(kv("a", [20, 21, 22, 23], 9), first_token=4, end_token=9)

    assert copies(planner) == [
        BlockCopies(Direction.IN, Urgency.STEP, [21, 22], out.host_blocks[1:])
    ]
    assert planner.num_kept_tokens("a") == 0


def test_a_load_beside_the_step_says_whose_it_is() -> None:
    """Whoever waits for it is told when it has landed."""
    planner = make_planner()
    planner.swap_out(kv("a", [10], 4))
    planner.take_plan()

    planner.swap_in(kv("a", [20], 4), first_token=0, end_token=4, is_async=True)

    [load] = copies(planner)
    assert (load.urgency, load.request_id) == (Urgency.REQUEST, "a")
    assert planner.totals.async_swaps_in == 1


def test_what_was_sent_once_is_not_sent_again() -> None:
    """A request that leaves a second time sends its new blocks and its unfinished last one."""
    planner = make_planner()
    planner.swap_out(kv("a", [10, 11, 12], 9))
    planner.swap_in(kv("a", [20, 21, 22], 9), first_token=0, end_token=9)
    planner.take_plan()

    planner.swap_out(kv("a", [20, 21, 22, 23], 14))

    [out] = copies(planner)
    assert out.device_blocks == [22, 23]
    assert planner.totals.blocks_spared == 2


def test_without_reuse_all_is_sent_again() -> None:
    """Then a swap-in uses its copy up, and nobody finds it."""
    planner = make_planner(reuse=False)
    planner.swap_out(kv("a", [10, 11], 8))
    planner.swap_in(kv("a", [20, 21], 8), first_token=0, end_token=8)
    planner.take_plan()

    assert planner.num_found_blocks(kv("a", [], 8).keys, 0) == 0
    planner.swap_out(kv("a", [20, 21], 8))
    assert [out.device_blocks for out in copies(planner)] == [[20, 21]]


def test_a_finished_turn_stays_for_the_next() -> None:
    """The next request with the same prefix finds the full blocks of the one that ended."""
    planner = make_planner()

    planner.keep_finished(kv("turn 1", [1, 2, 3], 9, tokens="talk"))

    [out] = copies(planner)
    assert (out.urgency, out.device_blocks) == (Urgency.NOBODY, [1, 2])
    turn_2 = kv("turn 2", [7, 8, 9], 12, tokens="talk")
    assert planner.num_found_blocks(turn_2.keys, 0) == 2
    planner.swap_in(turn_2, first_token=0, end_token=8)
    assert planner.totals.blocks_found == 2
    assert planner.totals.swaps_in == 0


def test_the_oldest_finished_turn_goes_first() -> None:
    """A full host memory takes a new turn's KV in place of the one unused for longest."""
    planner = make_planner(num_host_blocks=4)
    for number, name in enumerate(["old", "older", "newer"]):
        planner.keep_finished(kv(name, [2 * number, 2 * number + 1], 8))

    found = {
        name: planner.num_found_blocks(kv(name, [], 8).keys, 0)
        for name in ("old", "older", "newer")
    }
    assert found == {"old": 0, "older": 2, "newer": 2}


def test_copies_ahead_make_the_switch_small() -> None:
    """What was copied before the request had to leave is not sent when it does."""
    planner = make_planner()

    assert planner.copy_ahead(kv("a", [1, 2, 3], 11), 0, at_most=5) == 2

    planner.swap_out(kv("a", [1, 2, 3], 11))
    ahead, out = copies(planner)
    assert (ahead.urgency, ahead.device_blocks) == (Urgency.NOBODY, [1, 2])
    assert out.device_blocks == [3]
    assert planner.totals.blocks_ahead == 2


def test_copies_ahead_take_nothing_from_those_who_rely_on_it() -> None:
    """Where host memory is full of swapped-out requests, nothing is copied early."""
    planner = make_planner(num_host_blocks=2)
    planner.swap_out(kv("a", [1, 2], 8, priority=9))
    planner.take_plan()

    assert planner.copy_ahead(kv("b", [3, 4], 8, priority=0), 0, at_most=5) == 0
    assert copies(planner) == []


def test_a_worse_request_loses_its_copy_to_a_better_one() -> None:
    """Only when all else is gone, and then it is computed again."""
    planner = make_planner(num_host_blocks=2)
    planner.swap_out(kv("worse", [1, 2], 8, priority=5))

    assert planner.swap_out(kv("better", [3, 4], 8, priority=1))

    assert planner.num_kept_tokens("worse") == 0
    assert (planner.num_kept_tokens("better"), planner.totals.lost_copies) == (8, 1)


def test_a_better_request_keeps_its_copy_from_a_worse_one() -> None:
    """And of the worse one, what fits is kept: its beginning."""
    planner = make_planner(num_host_blocks=3)
    planner.swap_out(kv("better", [1, 2], 8, priority=1))

    assert not planner.swap_out(kv("worse", [3, 4], 8, priority=5))

    assert planner.num_kept_tokens("better") == 8
    assert planner.num_kept_tokens("worse") == 4


def test_the_priorities_of_now_decide_whose_copy_goes() -> None:
    """Not those with which requests left: one that is urgent by now keeps its only copy."""
    planner = make_planner(num_host_blocks=4)
    planner.swap_out(kv("urgent by now", [1, 2], 8, priority=5))
    planner.swap_out(kv("no more", [3, 4], 8, priority=1))

    planner.rank_anew({"urgent by now": 0, "no more": 9, "of somebody else": 3})
    assert planner.swap_out(kv("between", [5, 6], 8, priority=4))

    assert planner.num_kept_tokens("urgent by now") == 8
    assert planner.num_kept_tokens("no more") == 0


def test_the_order_of_a_plan_is_the_order_of_its_making() -> None:
    """A host block that is read and then written in one step is named in that order."""
    planner = make_planner(num_host_blocks=2, reuse=False)
    planner.swap_out(kv("a", [1, 2], 8))
    planner.take_plan()

    planner.swap_in(kv("a", [3, 4], 8), first_token=0, end_token=8)
    assert planner.swap_out(kv("b", [5], 4))

    assert [one.direction for one in copies(planner)] == [Direction.IN, Direction.OUT]


def test_a_failed_copy_cuts_those_who_rely_on_it() -> None:
    """What comes before the lost block is still good; the block is never found again."""
    planner = make_planner()
    planner.swap_out(kv("a", [1, 2, 3], 12))
    [out] = copies(planner)

    planner.forget([out.host_blocks[1]])

    assert planner.num_kept_tokens("a") == 4
    assert planner.num_found_blocks(kv("a", [], 12).keys, 0) == 1


def test_what_was_copied_around_a_failed_load_is_forgotten() -> None:
    """Young copies may hold what was computed from wrong KV; old ones cannot."""
    planner = make_planner()
    planner.keep_finished(kv("old", [1], 4))
    for _ in range(10):
        planner.take_plan()
    planner.swap_out(kv("young", [2], 4))
    planner.take_plan()

    planner.forget_recent()

    assert planner.num_kept_tokens("young") == 0
    assert planner.num_found_blocks(kv("old", [], 4).keys, 0) == 1


def test_nothing_is_left_when_all_is_forgotten() -> None:
    """New weights make every copy wrong."""
    planner = make_planner()
    planner.swap_out(kv("a", [1, 2], 7))
    planner.keep_finished(kv("b", [3], 4))

    planner.forget_all()

    assert planner.num_kept_tokens("a") == 0
    assert planner.num_host_blocks_used == 0
    assert planner.num_found_blocks(kv("b", [], 4).keys, 0) == 0
