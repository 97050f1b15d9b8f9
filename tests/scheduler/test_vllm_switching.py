"""What the scheduler decides about switches, seen from a keeper that keeps nothing."""

from itertools import pairwise
from pathlib import Path

import pytest

from scheduler.costs import STEPS_PER_FIT
from scheduler.displacement import QUANTUM
from tests.scheduler.scheduler_harness import Stepped


@pytest.fixture
def stepped(tiny_model: Path) -> Stepped:
    """Two slots, blocks for all, loads that take no time."""
    stepped = Stepped(tiny_model)
    stepped.keeper.is_async = False
    return stepped


def teach_costs(stepped: Stepped, *, token_s: float) -> None:
    """Most steps take a hundredth of a second; some prefill, which takes so much per token."""
    for index in range(STEPS_PER_FIT):
        prefill = 0 if index % 4 else 100
        stepped.scheduler._costs.record(
            prefill_tokens=prefill, decodes=1, step_s=0.01 + prefill * token_s
        )


# --- quantum --------------------------------------------------------------------------------------


def test_flapping_priorities_switch_no_more_than_once_a_quantum(stepped: Stepped) -> None:
    """Ranks that change at every step let no two requests take turns on the device."""
    for name in ("a", "b", "c", "d"):
        stepped.add(name)
    num_steps = 10 * QUANTUM
    seated = []
    for index in range(num_steps):
        best = index % 2
        new = {"a": best, "b": best, "c": 1 - best, "d": 1 - best}
        stepped.scheduler.set_priorities(new)
        stepped.step()
        seated.append(stepped.running)

    changes = [index for index, (one, next_one) in enumerate(pairwise(seated)) if one != next_one]
    assert all(later - earlier >= QUANTUM for earlier, later in pairwise(changes))
    assert {name for names in seated for name in names} == {"a", "b", "c", "d"}


def test_a_newcomer_need_not_wait_for_a_quantum_to_end(stepped: Stepped) -> None:
    """One that has just come back makes way at once for one that was never displaced."""
    for name in ("a", "b"):
        stepped.add(name)
    stepped.step()
    stepped.add("short", priority=0, max_tokens=2)
    for _ in range(4):
        stepped.step()
    assert stepped.running == {"a", "b"}
    assert stepped.switches.swaps_in == 1
    stepped.add("urgent", priority=0)

    stepped.step()

    assert "urgent" in stepped.running


def test_a_quantum_is_longer_where_switches_are_dear(stepped: Stepped) -> None:
    """If switches take twice a step's time, those who were displaced wait for twice as long."""
    teach_costs(stepped, token_s=1.0)
    stepped.keeper.swap_s = stepped.scheduler._costs.typical_step_s  # per block, and each has two
    for name in ("a", "b", "c", "d"):
        stepped.add(name)
    seated = []
    for index in range(3 * QUANTUM):  # fewer steps than teach the costs anew
        best = index % 2
        new = {"a": best, "b": best, "c": 1 - best, "d": 1 - best}
        stepped.scheduler.set_priorities(new)
        stepped.step()
        seated.append(stepped.running)

    changes = [index for index, (one, next_one) in enumerate(pairwise(seated)) if one != next_one]
    assert len(changes) == 2  # c and d came as newcomers, and then a and b came back
    assert changes[1] - changes[0] in range(2 * QUANTUM, 2 * QUANTUM + 2)


# --- swap or recompute ----------------------------------------------------------------------------


def displace_one(stepped: Stepped) -> None:
    for name in ("a", "b"):
        stepped.add(name)
    stepped.step()
    stepped.add("urgent", priority=0)
    stepped.step()
    assert stepped.switches.preemptions == 1


@pytest.mark.parametrize(("token_s", "is_swapped"), [(1e-3, True), (1e-5, False)])
def test_whichever_costs_less_is_done(stepped: Stepped, token_s: float, is_swapped: bool) -> None:  # noqa: FBT001
    """Forty tokens in two blocks: swapped if that takes less than computing them again."""
    teach_costs(stepped, token_s=token_s)
    stepped.keeper.swap_s = 0.001

    displace_one(stepped)

    switches = stepped.switches
    assert switches.swaps_out == is_swapped
    assert switches.fallbacks == switches.cheaper_recomputes == (not is_swapped)


def test_while_costs_are_unknown_requests_are_swapped(stepped: Stepped) -> None:
    """Before there is a measure of computing again, the KV is kept, whatever the swap costs."""
    stepped.keeper.swap_s = 10.0

    displace_one(stepped)

    assert (stepped.switches.swaps_out, stepped.switches.fallbacks) == (1, 0)


def test_what_cannot_be_switched_is_recomputed_and_counted(stepped: Stepped) -> None:
    """State beside the KV, such as a prompt's log probabilities, is not kept by anybody."""
    stepped.add("a")
    stepped.add("scored", prompt_logprobs=1)
    stepped.step()
    stepped.add("urgent", priority=0)
    stepped.step()

    switches = stepped.switches
    assert (switches.fallbacks, switches.unswitchable, switches.swaps_out) == (1, 1, 0)


# --- copies ahead ---------------------------------------------------------------------------------


def test_likely_victims_are_offered_worst_first_once_somebody_waits(tiny_model: Path) -> None:
    """With the slots full and somebody waiting, those to leave first are copied first."""
    stepped = Stepped(tiny_model, num_slots=5)
    for index, priority in enumerate([3, 9, 1, 7, 5]):
        stepped.add(f"p{priority}", priority=priority, prompt_logprobs=1 if index == 1 else None)
    stepped.step()
    stepped.step()
    assert stepped.keeper.copied_ahead == []

    stepped.add("waits", priority=9)
    stepped.step()
    stepped.step()

    assert stepped.keeper.copied_ahead == ["p7", "p5", "p3"]


def test_likely_victims_are_offered_when_few_blocks_are_left(tiny_model: Path) -> None:
    """Nobody waits, but those that run will soon lack blocks."""
    stepped = Stepped(tiny_model, num_blocks=1 + 17)
    stepped.add("big", num_tokens=15 * 32, priority=1)
    stepped.add("small", num_tokens=3, priority=2)
    stepped.step()

    stepped.step()

    assert stepped.keeper.copied_ahead == ["small", "big"]
