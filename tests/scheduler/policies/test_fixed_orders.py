"""Policies whose order never changes: ``fcfs``, ``static`` and ``program-fcfs``."""

from app.settings import FairnessSettings
from scheduler.admission import Wishes
from scheduler.policies.program_fcfs import ProgramFirstComeFirstServed
from scheduler.shares import TenantShares
from scheduler.tracking import TrackedRequest
from tests.scheduler.policies.stand_in import SERVICE, advance, make_policy, make_request, places


def make_programs(*, max_idle_programs: int = 100) -> ProgramFirstComeFirstServed:
    return ProgramFirstComeFirstServed(SERVICE, TenantShares(), max_idle_programs=max_idle_programs)


def step_of(program: str, tenant: str = "acme") -> TrackedRequest:
    return make_request(tenant, wishes=Wishes(program=program))


def test_fcfs_outranks_nobody() -> None:
    """Whatever anybody was served, all stay equal, so that arrival decides."""
    policy = make_policy(FairnessSettings(policy="fcfs"))
    requests = [make_request(f"t{number}") for number in range(3)]
    for request in requests:
        policy.arrive(request)
    advance(policy, requests[0], prompt=100, output=1000)
    policy.rerank(now_s=9.0, num_steps=90)

    assert policy.priorities(requests) == [0, 0, 0]


def test_static_takes_the_senders_word() -> None:
    """Requests rank by the priorities that they came with, and equals alike."""
    policy = make_policy(FairnessSettings(policy="static"))
    requests = [make_request(wishes=Wishes(priority=number)) for number in (5, -3, 0, 5)]
    for request in requests:
        policy.arrive(request)
    policy.rerank(now_s=0.0, num_steps=0)
    assert places(policy.priorities(requests)) == [2, 0, 1, 2]

    policy.depart(requests.pop(1))
    policy.rerank(now_s=0.1, num_steps=1)

    assert places(policy.priorities(requests)) == [1, 0, 1]


def test_a_program_keeps_the_place_of_its_first_step() -> None:
    """A step that comes back from its tool goes before a program that began in between."""
    policy = make_programs()
    first = step_of("early")
    policy.arrive(first)
    later = step_of("late")
    policy.arrive(later)
    policy.depart(first)

    back = step_of("early")
    policy.arrive(back)

    early, late = policy.priorities([back, later])
    assert early < late


def test_a_program_is_a_conversation_where_none_is_named_and_else_a_request() -> None:
    """Turns of a conversation stay together; requests without one queue one by one."""
    policy = make_programs()
    requests = [
        make_request(conversation="chat"),
        make_request(),
        make_request(),
        make_request(conversation="chat"),
        make_request(conversation="chat", wishes=Wishes(program="run")),
    ]
    for request in requests:
        policy.arrive(request)

    chat, one, other, chat_again, run = policy.priorities(requests)
    assert chat == chat_again < one < other < run


def test_nobody_takes_a_place_by_using_anothers_name() -> None:
    """Programs of two tenants are two, whatever they are called."""
    policy = make_programs()
    first, second = step_of("run", "acme"), step_of("run", "other")
    policy.arrive(first)
    policy.arrive(second)

    mine, theirs = policy.priorities([first, second])
    assert mine < theirs


def test_programs_idle_longest_are_forgotten() -> None:
    """Memory is bounded; a program that comes back after that queues anew."""
    policy = make_programs(max_idle_programs=2)
    for name in ("a", "b", "c"):
        request = step_of(name)
        policy.arrive(request)
        policy.depart(request)
    waiting = make_request()
    policy.arrive(waiting)
    remembered, forgotten = step_of("b"), step_of("a")
    policy.arrive(remembered)
    policy.arrive(forgotten)

    b, other, a = policy.priorities([remembered, waiting, forgotten])
    assert b < other < a


def test_places_outlive_the_process() -> None:
    """A program between two steps has its place with the next router too."""
    old = make_programs()
    request = step_of("early")
    old.arrive(request)
    old.depart(request)
    waiting = make_request()
    old.arrive(waiting)
    new = make_programs()
    new.arrive(waiting)
    new.load(old.save())

    back, newcomer = step_of("early"), make_request()
    new.arrive(back)
    new.arrive(newcomer)

    early, middle, late = new.priorities([back, waiting, newcomer])
    assert early < middle < late
