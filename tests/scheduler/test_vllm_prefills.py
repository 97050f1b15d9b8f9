"""Whose prompts a step is for."""

from pathlib import Path
from random import Random

import pytest

from scheduler.costs import STEPS_PER_FIT
from tests.scheduler.scheduler_harness import Stepped

STEP_S, TOKEN_S = 0.01, 0.001


@pytest.fixture
def stepped(tiny_model: Path) -> Stepped:
    """Eight slots, 256 tokens a step, and not a step yet of which the costs could be known."""
    return Stepped(tiny_model, num_slots=8, step_tokens=256)


def teach_costs(stepped: Stepped) -> None:
    """An ordinary step takes as long as ten tokens of a prompt."""
    for index in range(STEPS_PER_FIT):
        prefill = 0 if index % 4 else 100 + index
        stepped.scheduler._costs.record(
            prefill_tokens=prefill, decodes=1 + index % 3, step_s=STEP_S + prefill * TOKEN_S
        )


def test_a_better_ranked_prompt_has_its_step_to_itself(stepped: Stepped) -> None:
    """Those behind it come in the next one; none is forgotten."""
    stepped.add("low", priority=5, num_tokens=60)
    stepped.add("lower", priority=6, num_tokens=30)
    stepped.add("urgent", priority=1, num_tokens=50)
    assert stepped.step().num_scheduled_tokens == {"urgent": 50}
    assert stepped.step().num_scheduled_tokens == {"urgent": 1, "low": 60}
    assert stepped.step().num_scheduled_tokens == {"urgent": 1, "low": 1, "lower": 30}


def test_prompts_of_one_rank_share_a_step(stepped: Stepped) -> None:
    """Between them nobody is to come first."""
    for name in ("one", "two", "three"):
        stepped.add(name, num_tokens=60)
    assert stepped.step().num_scheduled_tokens == {"one": 60, "two": 60, "three": 60}


def test_others_may_make_the_step_longer_by_an_ordinary_one(stepped: Stepped) -> None:
    """As far as the engine knows what a token takes: so short prompts do not hold up much."""
    teach_costs(stepped)
    stepped.add("low", priority=5, num_tokens=60)
    stepped.add("urgent", priority=1, num_tokens=50)
    scheduled = stepped.step().num_scheduled_tokens
    assert scheduled["urgent"] == 50
    assert 8 <= scheduled["low"] <= 12


def test_a_prompt_that_is_under_way_is_held_for_a_better_ranked_one(stepped: Stepped) -> None:
    """For that one step; then it goes on where it was."""
    stepped.add("long", priority=5, num_tokens=400)
    assert stepped.step().num_scheduled_tokens == {"long": 256}
    stepped.add("urgent", priority=1, num_tokens=50)
    assert stepped.step().num_scheduled_tokens == {"urgent": 50}
    assert stepped.step().num_scheduled_tokens == {"urgent": 1, "long": 144}


def test_decodes_go_on_whoever_comes(stepped: Stepped) -> None:
    """A token each: whatever the rank, streams do not pause for a prompt."""
    for name in ("a", "b"):
        stepped.add(name, priority=9, num_tokens=10)
    stepped.step()
    stepped.add("urgent", priority=1, num_tokens=50)
    assert stepped.step().num_scheduled_tokens == {"a": 1, "b": 1, "urgent": 50}


def test_a_prompt_longer_than_a_step_takes_no_more_than_the_step_has(stepped: Stepped) -> None:
    """Then nobody shares it."""
    stepped.add("low", priority=5, num_tokens=60)
    stepped.add("urgent", priority=1, num_tokens=300)
    assert stepped.step().num_scheduled_tokens == {"urgent": 256}
    assert stepped.step().num_scheduled_tokens == {"urgent": 44}
    assert stepped.step().num_scheduled_tokens == {"urgent": 1, "low": 60}


def test_every_prompt_is_read_whatever_comes_when(tiny_model: Path, seed: int) -> None:
    """Random ranks, lengths, arrivals and costs: in the end all have ended."""
    choose = Random(seed)
    for known in (False, True):
        stepped = Stepped(tiny_model, num_slots=4, step_tokens=64)
        if known:
            teach_costs(stepped)
        for number in range(60):
            stepped.add(
                f"r{number}",
                priority=choose.randrange(5),
                num_tokens=choose.randrange(1, 200),
                max_tokens=choose.randrange(1, 20),
            )
            for _ in range(choose.randrange(4)):
                scheduled = stepped.step(landed=list(stepped.keeper.loading))
                assert scheduled.total_num_scheduled_tokens <= 64
        stepped.drain()
