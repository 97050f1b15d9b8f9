"""What the scheduler decides about switches, seen from a keeper that keeps nothing."""

from functools import partial
from itertools import pairwise
from pathlib import Path
from random import Random

import pytest

from scheduler.admission import EngineCapacity
from scheduler.costs import STEPS_PER_FIT
from scheduler.displacement import QUANTUM
from scheduler.errors import SchedulerSettingError
from scheduler.fleet import FleetLimits, FleetScheduler
from scheduler.policies.vtc import VirtualTokenCounter
from scheduler.service import ServiceWeights
from scheduler.switch_budget import SwitchBudget
from scheduler.vllm_scheduler import TENANT_ARG
from tests.scheduler.scheduler_harness import Stepped


@pytest.fixture
def stepped(tiny_model: Path) -> Stepped:
    """Two slots, blocks for all, loads that take no time."""
    stepped = Stepped(tiny_model)
    stepped.keeper.is_async = False
    return stepped


class Clock:
    """Stands still until it is moved."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def teach_costs(stepped: Stepped, *, token_s: float) -> None:
    """Most steps take a hundredth of a second; some prefill, which takes so much per token."""
    for index in range(STEPS_PER_FIT):
        prefill = 0 if index % 4 else 100
        stepped.scheduler._costs.record(
            prefill_tokens=prefill, decodes=1, step_s=0.01 + prefill * token_s
        )


# --- the order of those that run ------------------------------------------------------------------


def test_those_that_run_are_kept_in_order(tiny_model: Path, seed: int) -> None:
    """Decodes before prefills, each by rank, whoever came, went or was ranked anew."""
    stepped = Stepped(tiny_model, num_slots=8, step_tokens=64)
    choose = Random(seed)
    for number in range(300):
        if choose.random() < 0.4:
            stepped.add(
                f"r{number}",
                priority=choose.randrange(4),
                num_tokens=choose.randrange(1, 200),
                max_tokens=choose.randrange(1, 60),
            )
        live = sorted(stepped.scheduler.requests)
        if live and choose.random() < 0.2:
            new = choose.choices(live, k=3)
            stepped.scheduler.set_priorities({name: choose.randrange(4) for name in new})
        stepped.step(landed=list(stepped.keeper.loading))

        stepped.scheduler._order_running()
        turns = [
            (one.is_prefill_chunk, one.priority, one.arrival_time)
            for one in stepped.scheduler.running
        ]
        assert turns == sorted(turns)
    assert stepped.switches.preemptions > 20


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


# --- ranks that stay ------------------------------------------------------------------------------


def preemptions(stepped: Stepped, num_steps: int, *, quantum: float) -> int:
    """How often requests of three tenants made way on two slots, the fleet ranking at every step.

    Those that run have a lead of their prompt and two units for each step over the one that waits.
    """
    clock = Clock()
    fleet = FleetScheduler(
        partial(VirtualTokenCounter, quantum=quantum),
        clock=clock,
        random=Random(0),
        service=ServiceWeights(),
        limits=FleetLimits(update_s=0.1),
    )
    fleet.join("engine", EngineCapacity(max_num_seqs=2, blocks_total=64, block_tokens=32))
    for tenant in ("a", "b", "c"):
        stepped.add(tenant, num_tokens=40, extra_args={TENANT_ARG: tenant})
    for step in range(num_steps):
        clock.now_s += 0.2
        fleet.on_report("engine", stepped.scheduler.take_progress(is_full=step == 0))
        stepped.scheduler.set_priorities(fleet.priority_changes("engine"))
        stepped.step()
    return stepped.switches.preemptions


@pytest.mark.parametrize(("quantum", "num_switches"), [(100.0, 0), (60.0, 1)])
def test_a_lead_within_the_policys_quantum_switches_nobody(
    stepped: Stepped, quantum: float, num_switches: int
) -> None:
    """However often all are ranked meanwhile; once it is more, the one that waits takes a place."""
    assert preemptions(stepped, 20, quantum=quantum) == num_switches


# --- the bound on switches ------------------------------------------------------------------------


def test_who_may_displace_nobody_waits_until_it_may(tiny_model: Path) -> None:
    """Two switches are saved up: the third urgent request has to wait for the clock."""
    stepped = Stepped(tiny_model, num_slots=4, max_switches_per_s=2.0)
    clock = Clock()
    stepped.scheduler._budget = SwitchBudget(2.0, clock=clock)
    for name in ("a", "b", "c", "d"):
        stepped.add(name)
    stepped.step()
    for name in ("first", "second", "third"):
        stepped.add(name, priority=0)

    for _ in range(5):
        stepped.step()
    assert {"first", "second"} < stepped.running
    assert "third" not in stepped.running
    assert (stepped.switches.preemptions, stepped.switches.put_off) == (2, 1)

    clock.now_s = 0.5
    stepped.step()
    assert "third" in stepped.running
    assert (stepped.switches.preemptions, stepped.switches.put_off) == (3, 1)


def test_ranks_that_change_all_the_time_leave_a_newcomer_its_switch(tiny_model: Path) -> None:
    """Those that were displaced before use half of what there is, however often ranks change."""
    stepped = Stepped(tiny_model, max_switches_per_s=8.0)
    stepped.keeper.is_async = False
    for name in ("a", "b", "c", "d"):
        stepped.add(name, max_tokens=400)
    stepped.scheduler.set_priorities({"c": 0, "d": 0})
    for _ in range(QUANTUM):
        stepped.step()
    stepped.scheduler._budget = SwitchBudget(8.0, clock=Clock())
    num_before = stepped.switches.preemptions
    for index in range(10 * QUANTUM):
        best = index // QUANTUM % 2
        stepped.scheduler.set_priorities({"a": best, "b": best, "c": 1 - best, "d": 1 - best})
        stepped.step()
    num_by_ranks = stepped.switches.preemptions - num_before
    stepped.add("urgent", priority=-1)
    stepped.step()

    assert num_by_ranks == 4
    assert "urgent" in stepped.running


def test_preemptions_for_lack_of_blocks_are_not_bound(tiny_model: Path) -> None:
    """With nothing left to spend, the worst ranked still leaves for those that have to grow."""
    stepped = Stepped(tiny_model, num_blocks=1 + 6, max_switches_per_s=1.0)
    stepped.scheduler._budget = SwitchBudget(1.0, clock=Clock())
    while stepped.scheduler._budget.allowance.new:
        stepped.scheduler._budget.charge()
    for name in ("good", "bad"):
        stepped.add(name, num_tokens=60, max_tokens=120, priority=5 if name == "good" else 6)

    for _ in range(80):
        stepped.step()

    assert stepped.switches.preemptions == 1
    assert stepped.running == {"good"}


def test_a_bound_that_is_none_is_refused_at_start(tiny_model: Path) -> None:
    """An engine says what is wrong with it, and does not start."""
    with pytest.raises(SchedulerSettingError, match="0 is no positive number of switches"):
        Stepped(tiny_model, max_switches_per_s=0)


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


def test_an_engine_whose_kv_cannot_be_moved_counts_it_as_such(stepped: Stepped) -> None:
    """It has no host memory for anybody; that is no lack of room."""
    stepped.keeper.num_host_blocks = 0

    displace_one(stepped)

    switches = stepped.switches
    assert (switches.fallbacks, switches.unswitchable, switches.swaps_out) == (1, 1, 0)


def test_the_keeper_hears_of_new_ranks_of_those_that_have_left(stepped: Stepped) -> None:
    """Whose copies go first is decided by what matters now."""
    displace_one(stepped)
    [left] = stepped.keeper.kept

    stepped.scheduler.set_priorities({left: 3})
    stepped.step()

    assert stepped.keeper.ranked == {left: 3}


# --- copies ahead ---------------------------------------------------------------------------------


def test_likely_victims_are_offered_worst_first_once_somebody_waits(tiny_model: Path) -> None:
    """With the slots full and somebody waiting, those to leave first are copied first."""
    stepped = Stepped(tiny_model, num_slots=5)
    for index, priority in enumerate([3, 9, 1, 7, 5]):
        stepped.add(f"p{priority}", priority=priority, prompt_logprobs=1 if index == 1 else None)
    while len(stepped.running) < 5:
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
    while len(stepped.running) < 2:
        stepped.step()
    stepped.step()

    assert stepped.keeper.copied_ahead == ["small", "big"]
