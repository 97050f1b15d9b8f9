"""Least slack first, and what becomes of those who are late."""

import pytest

from app.settings import ClassSettings, FairnessSettings, InteractiveTargets
from scheduler.admission import Wishes
from scheduler.policies.policy import Policy
from scheduler.shares import ServiceClass, TenantShare
from scheduler.tracking import TrackedRequest
from tests.scheduler.policies.stand_in import (
    StandInEngine,
    advance,
    make_policy,
    make_request,
    places,
)

TTFT_S, TBT_S = 1.0, 0.2
TARGETS = ClassSettings(interactive=InteractiveTargets(ttft_s=TTFT_S, tbt_s=TBT_S))


def make_deadline(slack_quantum_s: float = 0.01, **shares: TenantShare) -> Policy:
    settings = FairnessSettings(policy="deadline", classes=TARGETS, slack_quantum_s=slack_quantum_s)
    return make_policy(settings, **shares)


def ranks(policy: Policy, now_s: float, *requests: TrackedRequest) -> list[int]:
    policy.rerank(now_s, num_steps=0)
    return places(policy.priorities(requests))


def arrived(policy: Policy, *requests: TrackedRequest) -> tuple[TrackedRequest, ...]:
    for request in requests:
        policy.arrive(request)
    return requests


def test_whoever_has_less_time_left_goes_first() -> None:
    """First tokens are due by admission, further ones by how many there have been."""
    policy = make_deadline()
    early, late, stream = arrived(
        policy,
        make_request(admitted_s=0.0),
        make_request(admitted_s=0.5),
        make_request(admitted_s=0.0, prompt_tokens=0),
    )
    advance(policy, stream, output=1)
    assert ranks(policy, 0.5, early, stream, late) == [0, 1, 2]

    advance(policy, stream, output=10)  # ahead of its reader

    assert ranks(policy, 0.6, early, late, stream) == [0, 1, 2]


def test_targets_are_those_of_the_class_unless_the_request_has_its_own() -> None:
    """Batch work can wait, and a request may wish for less or more than its class has."""
    policy = make_deadline(batch=TenantShare(service_class=ServiceClass.BATCH))
    batch, lowered, plain, soon, whenever = arrived(
        policy,
        make_request("batch"),
        make_request(wishes=Wishes(service_class="batch")),
        make_request(),
        make_request(wishes=Wishes(ttft_s=0.5)),
        make_request("batch", wishes=Wishes(ttft_s=500.0)),
    )

    assert ranks(policy, 0.1, soon, plain, batch, lowered, whenever) == [0, 1, 2, 2, 3]


def test_small_differences_do_not_reorder() -> None:
    """Within a quantum of slack requests are equal, and turn of arrival decides."""
    policy = make_deadline(slack_quantum_s=0.25)
    one, other = arrived(policy, make_request(admitted_s=0.1), make_request(admitted_s=0.0))

    assert ranks(policy, 0.2, one, other) == [0, 0]


def test_a_long_prompt_is_started_earlier() -> None:
    """How fast prompts are computed is learned, and what is left of one counts against slack."""
    policy = make_deadline()
    [measured] = arrived(policy, make_request(prompt_tokens=10_000))
    for interval in range(1, 6):  # 100 tokens in each tenth of a second
        advance(policy, measured, prompt=100)
        policy.rerank(0.1 * interval, num_steps=0)
    short, long = arrived(
        policy,
        make_request(admitted_s=0.5, prompt_tokens=10),
        make_request(admitted_s=0.6, prompt_tokens=500),
    )

    long_rank, short_rank = ranks(policy, 0.6, long, short)
    assert long_rank < short_rank


def test_a_clock_that_jumps_teaches_nothing() -> None:
    """An hour in which nobody asked is not what a first token takes."""
    policy = make_deadline()
    [request] = arrived(policy, make_request(prompt_tokens=1000))
    for now_s in (0.1, 0.2, 3600.0):
        advance(policy, request, prompt=100)
        policy.rerank(now_s, num_steps=0)
    advance(policy, request, prompt=request.prompt_left, output=1)
    early, later = arrived(policy, make_request(admitted_s=3599.5), make_request(admitted_s=3600.0))

    assert ranks(policy, 3600.0, early, request, later) == [1, 0, 2]


def test_prompts_that_fit_into_an_interval_are_taken_as_quick() -> None:
    """Of a prompt that began and ended between two rankings nobody knows how long it took."""
    policy = make_deadline()
    for interval in range(1, 6):
        [quick] = arrived(policy, make_request(prompt_tokens=10))
        advance(policy, quick, prompt=10)
        policy.depart(quick)
        policy.rerank(0.1 * interval, num_steps=0)
    first, long = arrived(
        policy,
        make_request(admitted_s=0.5, prompt_tokens=10),
        make_request(admitted_s=0.6, prompt_tokens=5000),
    )

    assert ranks(policy, 0.6, first, long) == [0, 1]


# --- those who are late -------------------------------------------------------------------------


def test_a_request_that_is_late_lets_those_go_first_who_can_still_make_it() -> None:
    """Whoever came first of those who are late has a place; the others stand as if just come."""
    policy = make_deadline()
    first, second, soon, fresh = arrived(
        policy,
        make_request(admitted_s=0.0),
        make_request(admitted_s=0.1),
        make_request(admitted_s=1.0),
        make_request(admitted_s=1.5, wishes=Wishes(ttft_s=TTFT_S + 0.1)),
    )
    assert ranks(policy, 0.9, first, second, soon) == [0, 1, 2]

    assert ranks(policy, 1.5, first, soon, second, fresh) == [0, 1, 2, 3]


def test_late_requests_have_one_in_ten_places() -> None:
    """The more run, the more of those who are late go first; in the order in which they came."""
    policy = make_deadline()
    running = arrived(policy, *(make_request(admitted_s=100.0, prompt_tokens=0) for _ in range(30)))
    for request in running:
        advance(policy, request, output=1)
    late = arrived(policy, *(make_request(admitted_s=float(number)) for number in range(10)))

    behind = ranks(policy, 100.0, *late, *running)

    assert behind[:3] == [0, 0, 0]
    assert behind[3] == behind[9] > 0


def test_a_stream_may_lag_by_some_tokens() -> None:
    """Lateness that it can catch up with puts a stream in front, not back."""
    policy = make_deadline()
    later, stream, fresh = arrived(
        policy,
        make_request(admitted_s=0.0),
        make_request(admitted_s=0.1, prompt_tokens=0),
        make_request(admitted_s=2.0),
    )
    advance(policy, stream, output=1)
    stream.is_running = False  # displaced; its second token is due at 1.3

    assert ranks(policy, 2.25, later, stream, fresh) == [0, 1, 2]
    assert ranks(policy, 2.35, later, fresh, stream) == [0, 1, 2]


def test_a_token_that_comes_too_late_starts_the_timeline_anew() -> None:
    """A stream that was starved goes on like any other, owed nothing and owing nothing."""
    policy = make_deadline()
    [starved] = arrived(policy, make_request(prompt_tokens=0))
    policy.rerank(100.0, num_steps=0)
    advance(policy, starved, output=1)
    sooner, later = arrived(
        policy,
        make_request(admitted_s=100.0, wishes=Wishes(ttft_s=TBT_S - 0.1)),
        make_request(admitted_s=100.0, wishes=Wishes(ttft_s=TBT_S + 0.1)),
    )

    assert ranks(policy, 100.0, sooner, starved, later) == [0, 1, 2]


def test_wishing_for_the_impossible_brings_nothing() -> None:
    """It is late at once, and then stands where those stand who came with it."""
    policy = make_deadline()
    greedy, honest = arrived(
        policy, make_request(wishes=Wishes(ttft_s=0.001, tbt_s=0.001)), make_request()
    )

    assert ranks(policy, 0.1, honest, greedy) == [0, 1]


def serve_overloaded(policy: Policy, num_steps: int) -> tuple[StandInEngine, list[TrackedRequest]]:
    """Twice what the engine can do: ten requests a step, of two steps each, on ten places."""
    engine = StandInEngine(policy, seats=10, step_s=0.05)
    sent: list[TrackedRequest] = []
    for _ in range(num_steps):
        sent += [engine.add(make_request(prompt_tokens=1, max_output_tokens=1)) for _ in range(10)]
        engine.step()
    return engine, sent


def share_in_time(policy: Policy, num_steps: int) -> float:
    """How many first tokens were in time, of those that the engine could have put out."""
    engine, sent = serve_overloaded(policy, num_steps)
    waits_s = [
        engine.first_token_s[request.request_id] - request.admitted_s
        for request in sent
        if request.request_id in engine.first_token_s
    ]
    return sum(wait_s <= TTFT_S + 1e-6 for wait_s in waits_s) / (5 * num_steps)


def test_in_overload_those_who_can_be_in_time_are() -> None:
    """First come, first served is late for everybody once the queue is a second long."""
    assert share_in_time(make_policy(FairnessSettings(policy="fcfs")), num_steps=200) < 0.25
    assert share_in_time(make_deadline(slack_quantum_s=0.1), num_steps=200) > 0.7


def test_in_overload_nobody_is_forgotten() -> None:
    """However late, everybody has a turn, in the order in which they came."""
    engine, sent = serve_overloaded(make_deadline(slack_quantum_s=0.1), num_steps=400)

    assert all(request.request_id in engine.first_token_s for request in sent[:200])


def test_targets_have_to_be_above_nought() -> None:
    """A deadline that lies in the past from the beginning promises nothing."""
    with pytest.raises(ValueError, match="greater than"):
        InteractiveTargets(ttft_s=0.0)
