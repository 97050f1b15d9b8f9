"""When the engine waits for a load, from what was measured lately."""

import pytest

from kv.swap_timing import SwapTiming


def measured(*, num_requests: int = 4, step_s: float = 0.1) -> SwapTiming:
    """1 ms per block out, 2 ms in, and as many steps as are remembered."""
    timing = SwapTiming()
    timing.add_out(10, 0.010)
    timing.add_in(10, 0.020)
    for _ in range(32):
        timing.add_step(num_requests, step_s, 0.0)
    return timing


def test_a_load_is_predicted_from_the_measured_rate() -> None:
    """Each direction has its own."""
    assert measured().in_s(5) == pytest.approx(0.010)


def test_a_swap_costs_the_engine_what_it_waits() -> None:
    """Copies beside the steps cost it nothing, however long they take."""
    timing = measured()
    timing.add_wait(8, 0.0)
    timing.add_wait(2, 0.001)

    assert timing.engine_s(10) == pytest.approx(0.002)


def test_large_copies_weigh_more_than_small_ones() -> None:
    """A rate is all the time over all the blocks, so a slow copy of one block counts little."""
    timing = SwapTiming()
    timing.add_in(99, 0.099)
    timing.add_in(1, 0.101)

    assert timing.in_s(1) == pytest.approx(0.002)


def test_what_was_not_measured_is_free_and_waited_for() -> None:
    """With no rates known nothing is predicted, and the first loads are waited for."""
    timing = SwapTiming()

    assert (timing.in_s(1000), timing.engine_s(1000)) == (0, 0)
    assert not timing.is_worth_going_on(1000)
    assert timing.num_blocks_out_in_step(0.1) is None
    timing.add_in(1, 1.0)
    assert not timing.is_worth_going_on(1000)
    timing.add_out(1, 1.0)
    assert timing.num_blocks_out_in_step(0.1) is None


def test_a_load_is_waited_for_while_that_costs_the_others_less_than_a_step() -> None:
    """Waiting costs each running request the copy's time, going on costs the loaded one a step."""
    timing = measured(num_requests=8, step_s=0.1)

    assert not timing.is_worth_going_on(6)
    assert timing.is_worth_going_on(7)
    assert measured(num_requests=8, step_s=0.01).is_worth_going_on(6)


def test_a_request_that_runs_alone_waits_for_its_load() -> None:
    """There is nothing to go on with."""
    assert not measured(num_requests=1, step_s=0.1).is_worth_going_on(30)


def test_an_engine_that_has_waited_enough_goes_on() -> None:
    """Half a percent of its time, of which what this step will wait for already is a part."""
    timing = measured(num_requests=2, step_s=0.1)
    assert not timing.is_worth_going_on(8)
    assert timing.is_worth_going_on(9)

    timing.plan_wait(4)
    assert not timing.is_worth_going_on(4)
    assert timing.is_worth_going_on(5)

    timing.add_step(2, 0.1, 0.016)
    assert timing.is_worth_going_on(1)


def test_one_odd_step_does_not_change_the_choice() -> None:
    """A step that ran many is one of several: the middle one counts."""
    timing = measured(num_requests=8)
    timing.add_step(256, 0.1, 0.0)

    assert timing.is_worth_going_on(7)
    assert not timing.is_worth_going_on(6)


def test_old_measurements_are_forgotten() -> None:
    """Only the last 32 copies of a direction and the last 32 steps count."""
    timing = measured()
    for _ in range(32):
        timing.add_in(10, 0.040)
        timing.add_step(16, 0.2, 0.0)

    assert timing.in_s(1) == pytest.approx(0.004)
    assert not timing.is_worth_going_on(3)
    assert timing.is_worth_going_on(4)


def test_a_share_of_a_step_sends_at_least_one_block() -> None:
    """What fits into a share of a step is counted in blocks; one always does."""
    assert measured(step_s=0.095).num_blocks_out_in_step(0.1) == 10
    assert measured(step_s=0.001).num_blocks_out_in_step(0.1) == 1
