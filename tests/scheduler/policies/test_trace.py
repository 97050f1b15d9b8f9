"""``random`` and ``markov``: levels change with engine steps, from a seed, and not otherwise."""

import pytest

from app.settings import FairnessSettings
from scheduler.policies.patterns import NUM_LEVELS, PATTERNS
from tests.scheduler.policies.stand_in import make_policy, make_request

REQUESTS = [make_request() for _ in range(400)]


def levels(name: str, *, seed: int = 1, steps: tuple[int, ...]) -> list[list[int]]:
    """The levels after each of these engine steps, updated at every fiftieth."""
    policy = make_policy(FairnessSettings(policy=name, update_frequency=0.02, seed=seed))
    for request in REQUESTS:
        policy.arrive(request)
    seen = []
    for num_steps in steps:
        policy.rerank(now_s=0.0, num_steps=num_steps)
        seen.append(policy.priorities(REQUESTS))
    return seen


@pytest.mark.parametrize("name", PATTERNS)
def test_levels_change_every_so_many_engine_steps(name: str) -> None:
    """At 0.02 with each fiftieth step, however often is ranked in between."""
    at_first, just_before, just_after, later, next_time = levels(name, steps=(0, 49, 50, 99, 100))

    assert at_first == just_before != just_after == later != next_time
    assert {*just_after} == {*range(NUM_LEVELS)}


@pytest.mark.parametrize("name", PATTERNS)
def test_levels_follow_from_the_seed(name: str) -> None:
    """The same seed gives the same priorities again, another one others."""
    steps = (0, 50, 100)
    assert levels(name, steps=steps) == levels(name, steps=steps)
    assert levels(name, steps=steps) != levels(name, seed=2, steps=steps)


def test_markov_remembers() -> None:
    """From one update to the next most levels stay with markov, and few with random."""

    def share_kept(name: str) -> float:
        before, after = levels(name, steps=(0, 50))
        return sum(a == b for a, b in zip(before, after, strict=True)) / len(REQUESTS)

    assert share_kept("random") < 0.25
    assert share_kept("markov") > 0.4


def test_turns_of_a_conversation_have_one_level() -> None:
    """It is conversations that are drawn for, where there are any."""
    policy = make_policy(FairnessSettings(policy="random"))
    turns = [make_request(conversation="chat") for _ in range(20)]
    for turn in turns:
        policy.arrive(turn)
    policy.rerank(now_s=0.0, num_steps=50)

    assert len({*policy.priorities(turns)}) == 1
