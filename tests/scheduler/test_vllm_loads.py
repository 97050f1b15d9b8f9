"""Loads beside the steps: they keep their slots, failures cost a recomputation, nobody is stuck."""

import random
from pathlib import Path

import pytest

from tests.scheduler.scheduler_harness import BLOCK_TOKENS, Stepped


@pytest.fixture
def stepped(tiny_model: Path) -> Stepped:
    """Two slots, blocks for all."""
    return Stepped(tiny_model)


def test_the_slot_of_a_load_is_given_to_nobody_else(stepped: Stepped) -> None:
    """Who was displaced for a request that loads stays away, and it runs once it has landed."""
    for name in ("a", "b", "c"):
        stepped.add(name)
    stepped.step()
    stepped.add("urgent", priority=0, kept=39)

    stepped.step()
    assert (stepped.running, stepped.loading) == ({"a"}, {"urgent"})
    stepped.step(landed=["urgent"])
    assert stepped.running == {"a"}
    stepped.step()

    assert stepped.running == {"a", "urgent"}
    assert stepped.switches.preemptions == 1


def test_no_more_load_than_there_are_slots(stepped: Stepped) -> None:
    """Requests without a slot in sight do not take blocks to load into."""
    for index in range(6):
        stepped.add(f"r{index}", kept=39)

    stepped.step()
    assert stepped.loading == {"r0", "r1"}
    stepped.step(landed=["r1"])
    stepped.step()

    assert (stepped.running, stepped.loading) == ({"r1"}, {"r0"})


def test_one_whose_load_is_undecided_displaces_nobody_yet(stepped: Stepped) -> None:
    """While the connector asks for patience others go on; once it knows, there is room at once."""
    for name in ("a", "b"):
        stepped.add(name)
    stepped.step()
    stepped.keeper.undecided.add("urgent")
    stepped.add("urgent", priority=0, kept=39)

    stepped.step()
    assert stepped.running == {"a", "b"}
    stepped.keeper.undecided.clear()
    stepped.step()

    assert (stepped.running, stepped.loading) == ({"a"}, {"urgent"})


def test_an_urgent_newcomer_is_not_held_up_by_loads_that_have_landed(stepped: Stepped) -> None:
    """Landed loads are admitted first, and in the same step a better ranked one makes its way."""
    stepped.add("a")
    stepped.add("b", kept=39)
    stepped.step()
    stepped.step(landed=["b"])
    stepped.add("urgent", priority=0)

    stepped.step()

    assert stepped.running == {"b", "urgent"}


def test_a_load_that_has_landed_takes_blocks_with_the_rank_of_who_waits_behind(
    tiny_model: Path,
) -> None:
    """If it lacks a block, it would hold up a better one: the worst ranked makes way for it."""
    stepped = Stepped(tiny_model, num_slots=3, num_blocks=1 + 8)
    stepped.add("low", priority=8, num_tokens=5 * BLOCK_TOKENS - 1, max_tokens=20)
    stepped.add(
        "landed",
        priority=9,
        num_tokens=2 * BLOCK_TOKENS + 1,
        max_tokens=20,
        kept=2 * BLOCK_TOKENS,
    )
    stepped.step()
    stepped.step()
    stepped.step(landed=["landed"])
    assert stepped.num_free_blocks == 0
    stepped.add("urgent", priority=0, max_tokens=20)

    stepped.step()

    assert "urgent" in stepped.running
    stepped.drain()
    assert stepped.num_free_blocks == 8


def test_a_failed_block_of_a_load_is_computed_again(stepped: Stepped) -> None:
    """What came before it stays loaded; the rest is computed, and only once all has landed."""
    stepped.add("a", num_tokens=4 * BLOCK_TOKENS, kept=4 * BLOCK_TOKENS)
    stepped.step()
    third = stepped.keeper.loading["a"][2]

    stepped.step(failed_blocks=[third])
    assert not stepped.running
    stepped.step(landed=["a"])
    output = stepped.step()

    assert output.num_scheduled_tokens == {"a": 2 * BLOCK_TOKENS}
    stepped.drain()
    assert stepped.num_free_blocks == 63


def test_a_load_whose_first_block_failed_starts_over(stepped: Stepped) -> None:
    """Nothing of it can be used: its blocks are free as soon as it has landed, and it computes."""
    stepped.add("a", num_tokens=4 * BLOCK_TOKENS, kept=4 * BLOCK_TOKENS)
    stepped.step()

    stepped.step(failed_blocks=stepped.keeper.loading["a"], landed=["a"])
    output = stepped.step()

    assert output.num_scheduled_tokens == {"a": 4 * BLOCK_TOKENS}
    stepped.drain()
    assert stepped.num_free_blocks == 63


def test_an_abort_during_a_load_waits_for_it(stepped: Stepped) -> None:
    """The request is gone from all reports at once, its blocks are free when nobody writes them."""
    stepped.add("a", kept=39)
    stepped.step()

    stepped.abort("a")

    progress = stepped.scheduler.take_progress(is_full=True)
    assert (progress.live, [one.reason for one in progress.finished]) == ([], ["abort"])
    assert stepped.num_free_blocks < 63
    stepped.step(landed=["a"])
    assert stepped.num_free_blocks == 63
    assert not stepped.scheduler.requests


def test_new_weights_make_loads_start_over(stepped: Stepped) -> None:
    """What is loading when all KV is declared stale is computed again, with nobody failing."""
    stepped.add("running")
    stepped.add("loading", num_tokens=100, kept=99)
    stepped.step()

    assert stepped.scheduler.reset_prefix_cache(reset_running_requests=True)

    first = stepped.step(landed=["loading"])
    assert first.num_scheduled_tokens == {"running": 41}
    second = stepped.step()
    assert second.num_scheduled_tokens == {"running": 1, "loading": 100}
    stepped.drain()
    assert stepped.num_free_blocks == 63


def test_new_weights_also_reach_loads_that_wait_to_run(tiny_model: Path) -> None:
    """A load that has landed but lacks a block to run gives up all of it."""
    stepped = Stepped(tiny_model, num_blocks=1 + 6)
    stepped.add("running", priority=0, num_tokens=3 * BLOCK_TOKENS - 1, max_tokens=20)
    stepped.add("landed", num_tokens=2 * BLOCK_TOKENS + 1, max_tokens=20, kept=2 * BLOCK_TOKENS)
    stepped.step()
    stepped.step()
    stepped.step(landed=["landed"])
    stepped.step()
    assert stepped.running == {"running"}

    assert stepped.scheduler.reset_prefix_cache(reset_running_requests=True)

    assert stepped.num_free_blocks == 6
    stepped.drain()
    assert stepped.num_free_blocks == 6


def test_a_storm_of_loads_leaves_nobody_stuck(tiny_model: Path, seed: int) -> None:
    """Few slots, few blocks, loads that take their time and fail, changing ranks, aborts."""
    choose = random.Random(seed)
    stepped = Stepped(tiny_model, num_slots=4, num_blocks=1 + 24, step_tokens=64)
    num_left = 120
    for _ in range(4000):
        if num_left and choose.random() < 0.3:
            num_left -= 1
            num_tokens = choose.randrange(1, 300)
            kept = choose.choice([0, choose.randrange(num_tokens)])
            priority, max_tokens = choose.randrange(5), choose.randrange(1, 80)
            stepped.add(
                f"r{num_left}",
                priority=priority,
                num_tokens=num_tokens,
                max_tokens=max_tokens,
                kept=kept,
            )
        live = list(stepped.scheduler.requests)
        if live and choose.random() < 0.3:
            stepped.scheduler.set_priorities({choose.choice(live): choose.randrange(5)})
        if live and choose.random() < 0.02:
            stepped.abort(choose.choice(live))
        stepped.keeper.is_async = choose.random() < 0.7
        stepped.keeper.undecided = {name for name in live if choose.random() < 0.1}
        loading = stepped.keeper.loading
        failed = {
            block for blocks in loading.values() for block in blocks if choose.random() < 0.01
        }
        stepped.step(
            landed=[name for name in loading if choose.random() < 0.3], failed_blocks=failed
        )
        assert len(stepped.running) + len(stepped.scheduler._slot_keepers) <= 4
    stepped.keeper.undecided.clear()

    stepped.drain()

    assert not num_left
    assert stepped.num_free_blocks == 24
    assert stepped.switches.preemptions > 50
    assert stepped.keeper.swap_totals.swaps_in > 50
