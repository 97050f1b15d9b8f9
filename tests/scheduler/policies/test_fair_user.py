"""Fair queuing by user: finishes on one timeline, predictions and their correction."""

from copy import copy
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.settings import FairnessSettings
from scheduler.ledger import Tokens
from scheduler.policies.fair_user import FairUser
from scheduler.shares import TenantShare, TenantShares
from scheduler.tracking import TrackedRequest
from tests.scheduler.policies.stand_in import SERVICE, StandInEngine, advance, make_request, places

SETTINGS = FairnessSettings(policy="fair-user")


def make_fair_user(quantum: float = 1.0, **weights: float) -> FairUser:
    shares = TenantShares()
    shares.replace({tenant: TenantShare(weight) for tenant, weight in weights.items()})
    return FairUser(SERVICE, shares, quantum=quantum)


def short(tenant: str, conversation: str | None = None) -> TrackedRequest:
    """A request that takes 100 units of service, exactly as predicted."""
    return make_request(tenant, prompt_tokens=80, max_output_tokens=10, conversation=conversation)


def ranks(policy: FairUser, *requests: TrackedRequest) -> list[int]:
    policy.rerank(now_s=0.0, num_steps=0)
    return places(policy.priorities(requests))


def test_requests_of_a_tenant_stand_behind_each_other() -> None:
    """A newcomer's request goes before the second one of a tenant that sent a thousand."""
    policy = make_fair_user()
    flood = [short("flood") for _ in range(1000)]
    for request in flood:
        policy.arrive(request)
    quiet = short("quiet")
    policy.arrive(quiet)

    assert ranks(policy, flood[0], quiet, flood[1]) == [0, 0, 1]


def test_a_larger_weight_stands_closer() -> None:
    """With twice the weight two requests finish where one of weight 1 does."""
    policy = make_fair_user(heavy=2.0, light=1.0)
    requests = [short("light"), short("heavy"), short("heavy"), short("heavy")]
    for request in requests:
        policy.arrive(request)

    assert ranks(policy, *requests) == [1, 0, 1, 2]


@settings(max_examples=20, deadline=None)
@given(num_conversations=st.integers(1, 40), seed=st.integers(0, 1000))
def test_more_conversations_bring_a_user_nothing(num_conversations: int, seed: int) -> None:
    """One user with many conversations and one with a single one receive the same service."""
    engine, draw = StandInEngine(make_fair_user()), Random(seed)
    for _ in range(4000):
        for tenant, conversations in (("many", num_conversations), ("one", 1)):
            queued = sum(request.tenant == tenant for request in engine.live)
            for _ in range(conversations - queued):
                conversation = f"c{draw.randrange(conversations)}"
                engine.add(short(tenant, conversation))
        engine.step()

    # A user of one conversation has nothing waiting while a step ends with its answer.
    assert engine.received["many"] == pytest.approx(engine.received["one"], rel=0.05)


def test_service_is_shared_by_weight(seed: int) -> None:
    """Users that always wait receive service in proportion to their weights."""
    engine, draw = StandInEngine(make_fair_user(heavy=3.0, light=1.0)), Random(seed)
    for _ in range(4000):
        for tenant in ("heavy", "light"):
            if sum(request.tenant == tenant for request in engine.live) < 5:
                engine.add(
                    make_request(
                        tenant,
                        prompt_tokens=draw.randint(1, 200),
                        max_output_tokens=draw.randint(1, 40),
                    )
                )
        engine.step()

    assert engine.received["heavy"] / engine.received["light"] == pytest.approx(3.0, rel=0.1)


def test_an_idle_tenant_gathers_no_credit() -> None:
    """Whoever asked for nothing while others were served starts where the timeline stands."""
    policy = make_fair_user()
    busy = [short("busy") for _ in range(50)]
    for request in busy:
        policy.arrive(request)
    for request in busy[:40]:
        advance(policy, request, 80, 10)
        policy.depart(request)
    returning = [short("back") for _ in range(3)]
    for request in returning:
        policy.arrive(request)

    assert ranks(policy, *busy[40:43], *returning) == [0, 1, 2, 0, 1, 2]


def test_what_is_not_taken_is_given_back() -> None:
    """A request that is aborted costs its tenant what it was served, and no more."""
    policy = make_fair_user()
    aborted = make_request("acme", prompt_tokens=80, max_output_tokens=1000)
    policy.arrive(aborted)
    advance(policy, aborted, 80, 0)
    policy.depart(aborted)

    assert policy.counters() == {"acme": 0.0}


def test_what_is_taken_beyond_the_prediction_is_charged_as_it_happens() -> None:
    """A request without end falls back while it runs, and its tenant's next ones with it."""
    policy = make_fair_user()
    endless = make_request("endless", prompt_tokens=1)
    policy.arrive(endless)
    modest = [make_request("modest", prompt_tokens=100) for _ in range(2)]
    for request in modest:
        policy.arrive(request)
    assert ranks(policy, endless, *modest) == [0, 1, 2]

    advance(policy, endless, 1, 2000)

    assert ranks(policy, *modest, endless) == [0, 1, 2]


def test_outputs_are_predicted_from_the_tenants_past() -> None:
    """Whose answers were short is expected to get short ones: more of them fit before others'."""
    policy = make_fair_user()
    for _ in range(200):
        past = make_request("brief", prompt_tokens=10)
        policy.arrive(past)
        advance(policy, past, 10, 5)
        policy.depart(past)
    brief, unknown = make_request("brief"), make_request("unknown")
    policy.arrive(unknown)
    policy.arrive(brief)

    assert ranks(policy, brief, unknown) == [0, 1]


def test_a_correction_is_charged_to_the_tenant() -> None:
    """Tokens that no request's progress told of count for the next one; taken back, they do not."""
    policy = make_fair_user()
    other = short("other")
    policy.arrive(other)
    policy.settle("acme", Tokens(500, 0))
    policy.settle("acme", Tokens(-200, 0))
    request = short("acme")
    policy.arrive(request)

    # V stands at 500: what others are given passes for everybody who shares.
    assert policy.counters() == {"other": 0.0, "acme": 100.0}


def test_invented_tenants_are_forgotten() -> None:
    """Of tenants that came and went a bounded number is remembered."""
    policy = FairUser(SERVICE, TenantShares(), quantum=1.0, max_idle_tenants=10)
    for number in range(1000):
        request = short(f"invented {number}")
        policy.arrive(request)
        policy.depart(request)

    assert len(policy.counters()) == 10


def test_the_timeline_outlives_the_process() -> None:
    """Debts and expectations are there again; live requests keep their order."""
    old = make_fair_user()
    ended = make_request("ahead", prompt_tokens=500, max_output_tokens=1)
    old.arrive(ended)
    live = [short("slow"), short("slow")]
    for request in live:
        old.arrive(request)
    advance(old, ended, 500, 1)
    old.depart(ended)
    new = make_fair_user()
    live_again = [copy(request) for request in live]
    for request in live_again:
        new.arrive(request)
    new.load(old.save())

    # It finished at 502 of the timeline, of which half has passed.
    assert new.counters() == old.counters() == {"slow": 0.0, "ahead": 251.0}
    assert ranks(new, *live_again) == ranks(old, *live) == [0, 1]
