"""What computing again would cost, learned from steps whose cost the test knows."""

import math
import random

import pytest

from scheduler.costs import STEPS_PER_FIT, WINDOW_STEPS, StepCosts

BASE_S, TOKEN_S, DECODE_S = 5e-3, 2e-5, 1e-4


def run_steps(
    costs: StepCosts,
    choose: random.Random,
    num_steps: int = WINDOW_STEPS,
    *,
    token_s: float = TOKEN_S,
) -> None:
    for _ in range(num_steps):
        prefill = choose.choice([0, 0, 100, 500, 2000])
        decodes = choose.randrange(100)
        step_s = BASE_S + token_s * prefill + DECODE_S * decodes
        step_s *= choose.uniform(0.95, 1.05)
        if choose.random() < 0.05:
            step_s += 0.5  # something else took its time
        costs.record(prefill_tokens=prefill, decodes=decodes, step_s=step_s)


def test_a_tokens_cost_is_found_whatever_else_the_steps_did(seed: int) -> None:
    """Decodes, a base, noise and now and then half a second of something else do not hide it."""
    costs = StepCosts()

    run_steps(costs, random.Random(seed))

    assert costs.recompute_s(1000) == pytest.approx(1000 * TOKEN_S, rel=0.1)


def test_so_many_tokens_fit_into_a_time(seed: int) -> None:
    """The inverse of what they cost; none while that is unknown."""
    costs = StepCosts()
    assert costs.num_tokens_within(1.0) == 0
    run_steps(costs, random.Random(seed))
    assert costs.num_tokens_within(1000 * TOKEN_S) == pytest.approx(1000, rel=0.1)


def test_the_window_forgets(seed: int) -> None:
    """After a change of speed, the old one counts no more."""
    costs, choose = StepCosts(), random.Random(seed)
    run_steps(costs, choose)

    run_steps(costs, choose, token_s=5 * TOKEN_S)

    assert costs.recompute_s(1000) == pytest.approx(5000 * TOKEN_S, rel=0.1)


def test_a_typical_step_is_the_median() -> None:
    """One slow step does not make all of them slow."""
    costs = StepCosts()
    for index in range(STEPS_PER_FIT):
        costs.record(prefill_tokens=0, decodes=1, step_s=1.0 if index == 7 else 0.01)

    assert costs.typical_step_s == 0.01


@pytest.mark.parametrize(
    "prefills",
    [[0], [100], [0] * 40 + [100], [0, 100]],
    ids=["none", "always as many", "too few", "always beside as many decodes fewer"],
)
def test_what_the_steps_do_not_tell_is_unknown(prefills: list[int]) -> None:
    """Without prefills of several sizes, whatever the decodes, computing again has no price."""
    costs = StepCosts()
    for index in range(WINDOW_STEPS // 2):
        prefill = prefills[index % len(prefills)]
        costs.record(prefill_tokens=prefill, decodes=100 - prefill, step_s=0.01 + prefill * 1e-5)

    assert costs.recompute_s(1000) == math.inf


def test_nothing_is_known_at_first() -> None:
    """Before there are steps, computing again counts as dearer than anything."""
    costs = StepCosts()

    assert (costs.recompute_s(1), costs.typical_step_s) == (math.inf, 0.0)


def test_tokens_that_seem_to_cost_nothing_are_unknown() -> None:
    """Where steps with more tokens were quicker, there is no telling what a token costs."""
    costs = StepCosts()
    for index in range(STEPS_PER_FIT):
        prefill = index % 2 * 100
        costs.record(prefill_tokens=prefill, decodes=1, step_s=0.02 - prefill * 1e-4)

    assert costs.recompute_s(1000) == math.inf
