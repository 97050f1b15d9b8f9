"""The fleet: admission, reports, priorities, and what a router's death costs."""

from collections.abc import Mapping, Sequence
from functools import partial
from random import Random
from typing import Any

import msgspec
import pytest

from scheduler.admission import AdmitRequest, EngineCapacity, Placement
from scheduler.errors import (
    InvalidWeightError,
    NoEngineError,
    NotFreshError,
    QuotaExceededError,
    UnknownEngineError,
)
from scheduler.fleet import STARVING, FleetCheckpoint, FleetLimits, FleetScheduler
from scheduler.policies.catalogue import POLICIES, PolicyOptions, policy_factory
from scheduler.policies.deadline import LatencyTargets
from scheduler.policies.fcfs import FirstComeFirstServed
from scheduler.policies.numbering import MIDDLE, STRIDE
from scheduler.policies.policy import PolicyFactory
from scheduler.policies.vtc import VirtualTokenCounter
from scheduler.reports import EngineProgress, FinishedRequest, LiveRequest, SwitchCounts
from scheduler.service import ServiceWeights
from scheduler.shares import ServiceClass, TenantShare
from scheduler.tracking import TrackedRequest

LEVEL = 2 * MIDDLE + 1  # the priority of all until one is served more than another
AHEAD = LEVEL - 2 * STRIDE  # that of who parts from the others, to the front
UPDATE_S = 0.1
UNSEEN_TIMEOUT_S = 30.0
CAPACITY = EngineCapacity(max_num_seqs=8, blocks_total=100, block_tokens=16)
OPTIONS = PolicyOptions(
    quantum=1.0,
    batch_lag=100.0,
    head_start=0.0,
    targets=dict.fromkeys(ServiceClass, LatencyTargets(1.0, 0.1)),
    slack_quantum_s=0.1,
    update_frequency=0.5,
    seed="1",
)


class HeldClock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def make_fleet(
    *engine_ids: str,
    clock: HeldClock | None = None,
    quantum: float = 0.0,
    max_tool_ttl_s: float = 0.0,
) -> FleetScheduler:
    fleet = FleetScheduler(
        partial(VirtualTokenCounter, quantum=quantum),
        clock=clock or HeldClock(),
        random=Random(0),
        service=ServiceWeights(),
        limits=FleetLimits(
            update_s=UPDATE_S,
            unseen_timeout_s=UNSEEN_TIMEOUT_S,
            max_tool_ttl_s=max_tool_ttl_s,
        ),
    )
    for engine_id in engine_ids:
        fleet.join(engine_id, CAPACITY)
        fleet.on_report(engine_id, progress(0, is_full=True))
    return fleet


def place(
    fleet: FleetScheduler, request: AdmitRequest, avoid: frozenset[str] = frozenset()
) -> Placement:
    """Admit a request that there is room for."""
    placement = fleet.admit(request, avoid)
    assert placement is not None
    return placement


def ask(
    request_id: str,
    tenant: str = "acme",
    *,
    conversation: str | None = None,
    prompt_tokens: int = 100,
) -> AdmitRequest:
    return AdmitRequest(
        request_id=request_id,
        tenant=tenant,
        conversation=conversation,
        prompt_tokens=prompt_tokens,
        max_output_tokens=100,
        arrival_s=0.0,
    )


def live(
    request_id: str,
    tenant: str = "acme",
    *,
    conversation: str | None = None,
    done: tuple[int, int] = (0, 0),
    priority: int = LEVEL,
    is_running: bool = True,
) -> LiveRequest:
    """A request of 100 prompt tokens with ``done`` prompt and output tokens behind it."""
    return LiveRequest(
        request_id=request_id,
        tenant=tenant,
        conversation=conversation,
        arrival_s=0.0,
        prompt_tokens=100,
        prompt_done=done[0],
        output_done=done[1],
        priority=priority,
        is_running=is_running,
    )


def finished(request_id: str, tenant: str = "acme", *, done: tuple[int, int]) -> FinishedRequest:
    return FinishedRequest(
        request_id=request_id,
        tenant=tenant,
        prompt_tokens=100,
        prompt_done=done[0],
        output_done=done[1],
        reason="stop",
    )


def progress(
    step: int,
    lives: Sequence[LiveRequest] = (),
    gone: Sequence[FinishedRequest] = (),
    *,
    is_full: bool = False,
    totals: Mapping[str, tuple[int, int]] | None = None,
) -> EngineProgress:
    return EngineProgress(
        step=step,
        is_full=is_full,
        live=list(lives),
        finished=list(gone),
        num_running=sum(request.is_running for request in lives),
        num_waiting=sum(not request.is_running for request in lives),
        blocks_used=7,
        blocks_total=100,
        host_blocks_used=0,
        host_blocks_total=50,
        switches=SwitchCounts(preemptions=3),
        tenant_service=dict(totals or {}),
    )


def tenant(fleet: FleetScheduler, name: str) -> dict[str, Any]:
    tenants: Any = fleet.snapshot()["tenants"]
    found: dict[str, Any] = tenants[name]
    return found


def tenant_names(fleet: FleetScheduler) -> set[str]:
    tenants: Any = fleet.snapshot()["tenants"]
    return set(tenants)


def engine(fleet: FleetScheduler, engine_id: str) -> dict[str, Any]:
    engines: Any = fleet.snapshot()["engines"]
    found: dict[str, Any] = engines[engine_id]
    return found


def live_ids(fleet: FleetScheduler) -> set[str]:
    return {request.request_id for request in fleet.checkpoint().requests}


# --- admission ------------------------------------------------------------------------------


def test_without_an_engine_nothing_is_admitted() -> None:
    """With no engine joined, or all of them to be avoided, admission says so and keeps nothing."""
    with pytest.raises(NoEngineError, match="0 joined"):
        make_fleet().admit(ask("r1"))
    fleet = make_fleet("e1", "e2")
    with pytest.raises(NoEngineError, match="2 joined and 2 to be avoided"):
        fleet.admit(ask("r1"), avoid=frozenset({"e1", "e2"}))

    assert live_ids(fleet) == set()


def test_requests_spread_by_what_they_are_expected_to_take() -> None:
    """A long prompt weighs as much as several short ones, from the moment it is placed."""
    fleet = make_fleet("e1", "e2")
    long = place(fleet, ask("long", prompt_tokens=2000)).engine_id

    short = {place(fleet, ask(f"short{number}")).engine_id for number in range(5)}

    assert short == {"e1", "e2"} - {long}


def test_a_conversation_returns_to_its_engine() -> None:
    """The next turn goes where the last one was, unless that engine is to be avoided."""
    fleet = make_fleet("e1", "e2", "e3", "e4")
    first = place(fleet, ask("turn1", conversation="c")).engine_id

    assert place(fleet, ask("turn2", conversation="c")).engine_id == first
    assert place(fleet, ask("turn3", conversation="c"), frozenset({first})).engine_id != first


def test_admitting_a_live_request_again_moves_it() -> None:
    """A gateway that lost its engine sends the same request on; it is never on two engines."""
    fleet = make_fleet("e1", "e2")
    first = place(fleet, ask("r1")).engine_id

    second = place(fleet, ask("r1"), avoid=frozenset({first})).engine_id

    assert (engine(fleet, first)["live"], engine(fleet, second)["live"]) == (0, 1)
    assert engine(fleet, first)["load"] == 0.0
    fleet.on_report(first, progress(1, [live("r1", done=(100, 50))]))
    assert tenant(fleet, "acme")["service"] == 0.0


def test_moving_its_only_request_does_not_cost_a_tenant_its_turn() -> None:
    """A tenant whose one request moves was never idle, so it is not lifted."""
    fleet = make_fleet("e1", "e2")
    for name in ("poor", "rich"):
        fleet.admit(ask(name, name))
    on = {request.request_id: request.engine_id for request in fleet.checkpoint().requests}
    assert on["rich"] is not None
    fleet.on_report(on["rich"], progress(1, [live("rich", "rich", done=(100, 500))]))

    fleet.admit(ask("poor", "poor"))

    assert tenant(fleet, "poor")["counter"] == 0.0


def test_a_request_that_goes_on_elsewhere_is_charged_once() -> None:
    """Its prompt and what is out: whether the lost engine had come to report it or not."""
    for num_reported in (0, 30, 50):
        fleet = make_fleet("e1", "e2")
        first = place(fleet, ask("r1")).engine_id
        if num_reported:
            fleet.on_report(first, progress(1, [live("r1", done=(100, num_reported))]))

        going_on = msgspec.structs.replace(ask("r1"), output_done=50)
        second = place(fleet, going_on, frozenset({first})).engine_id

        assert tenant(fleet, "acme")["service"] == 100.0 + 2 * 50
        fleet.on_report(second, progress(1, [live("r1", done=(100, 60))]))
        fleet.leave(first)
        fleet.on_report(second, progress(2, gone=[finished("r1", done=(100, 70))]))
        assert tenant(fleet, "acme")["service"] == tenant(fleet, "acme")["counter"] == 240.0


def test_a_request_that_goes_on_is_charged_for_what_follows_alone() -> None:
    """Also where its engine's loss was heard of first, and its full report settles nothing."""
    fleet = make_fleet("e1", "e2")
    first = place(fleet, ask("r1")).engine_id
    fleet.on_report(first, progress(1, [live("r1", done=(100, 50))]))
    fleet.leave(first)

    going_on = msgspec.structs.replace(ask("r1"), output_done=50)
    second = place(fleet, going_on, frozenset({first})).engine_id
    lives = [live("r1", done=(100, 60))]
    fleet.on_report(second, progress(1, lives))
    fleet.on_report(second, progress(2, lives, is_full=True, totals={"acme": (0, 10)}))

    assert tenant(fleet, "acme")["service"] == 100.0 + 2 * 60
    assert engine(fleet, second)["load"] < 2 * 100


def test_a_cancelled_request_is_forgotten() -> None:
    """A request whose sending failed leaves neither load nor charge, and twice is no error."""
    fleet = make_fleet("e1")
    fleet.admit(ask("r1"))

    fleet.cancel("r1")
    fleet.cancel("r1")

    assert engine(fleet, "e1")["load"] == 0.0
    assert tenant_names(fleet) == set()


def test_a_request_that_never_reached_its_engine_expires() -> None:
    """What no report mentions in time is dropped; what was mentioned once is not."""
    clock = HeldClock()
    fleet = make_fleet("e1", clock=clock)
    fleet.admit(ask("lost"))
    fleet.admit(ask("arrived"))
    fleet.on_report("e1", progress(1, [live("arrived")]))

    clock.now_s += UNSEEN_TIMEOUT_S - 1
    fleet.priority_changes("e1")
    assert live_ids(fleet) == {"lost", "arrived"}
    clock.now_s += 2
    fleet.priority_changes("e1")
    assert live_ids(fleet) == {"arrived"}


# --- gateways that did not wait -------------------------------------------------------------


def late_admit() -> tuple[FleetScheduler, str, str]:
    """A fleet that placed ``r1``, whose gateway did not wait: where it is expected, where it is."""
    fleet = make_fleet("e1", "e2")
    fleet.set_tenants({"acme": TenantShare(tokens_per_minute=1000)})
    expected = place(fleet, ask("r1", conversation="c")).engine_id
    [other] = {"e1", "e2"} - {expected}
    return fleet, expected, other


def test_a_request_whose_place_was_told_too_late_is_where_its_engine_says() -> None:
    """From that engine's first report on it is charged and ranked there, and holds one seat."""
    fleet, expected, other = late_admit()

    fleet.on_report(other, progress(1, [live("r1", done=(100, 5), priority=9)]))

    assert (engine(fleet, expected)["live"], engine(fleet, other)["live"]) == (0, 1)
    assert engine(fleet, expected)["load"] == 0.0
    assert fleet.priority_changes(other) == {"r1": LEVEL}
    assert tenant(fleet, "acme")["service"] == 110.0
    assert tenant(fleet, "acme")["tokens_reserved"] == 200 - 105
    assert place(fleet, ask("next", conversation="c")).engine_id == other


def test_a_request_whose_place_was_told_too_late_may_have_ended_by_then() -> None:
    """One report tells of it first and last: it is charged, and holds nothing any more."""
    fleet, expected, other = late_admit()

    fleet.on_report(other, progress(1, gone=[finished("r1", done=(100, 9))]))

    assert (live_ids(fleet), engine(fleet, expected)["load"]) == (set(), 0.0)
    assert tenant(fleet, "acme")["service"] == 118.0
    assert tenant(fleet, "acme")["tokens_reserved"] == 0


def test_a_question_that_comes_after_its_request_moves_nothing() -> None:
    """The engine has told of it before its gateway's question is read; what is done stays done."""
    fleet = make_fleet("e1", "e2")
    fleet.on_report("e1", progress(1, [live("r1", done=(0, 0), priority=9)]))
    fleet.on_report("e1", progress(2, [live("r1", done=(100, 5), priority=9)]))

    assert fleet.admit(ask("r1")) == Placement("e1", 9)

    fleet.on_report("e1", progress(3, [live("r1", done=(100, 6), priority=9)]))
    assert (engine(fleet, "e1")["live"], engine(fleet, "e2")["live"]) == (1, 0)
    assert tenant(fleet, "acme")["service"] == 112.0


def test_what_a_lost_engine_still_says_of_a_request_moves_nothing() -> None:
    """Its gateway has lost it and sent the request on, to an engine that has yet to tell of it."""
    fleet = make_fleet("e1", "e2")
    first = place(fleet, ask("r1")).engine_id
    going_on = msgspec.structs.replace(ask("r1"), output_done=5)
    second = place(fleet, going_on, frozenset({first})).engine_id

    fleet.on_report(first, progress(1, [live("r1", done=(100, 8))]))
    fleet.on_report(first, progress(2, gone=[finished("r1", done=(100, 9))]))

    assert (engine(fleet, first)["live"], engine(fleet, second)["live"]) == (0, 1)


def test_only_what_is_in_line_is_cancelled_as_waiting() -> None:
    """A request that has a place is its engine's, and one that nobody knows is nobody's."""
    fleet = make_fleet("e1")
    while fleet.admit(ask(f"r{fleet.num_live}")) is not None:
        pass
    last = f"r{fleet.num_live - 1}"
    assert fleet.num_in_line == 1

    fleet.cancel_waiting("r0")
    fleet.cancel_waiting("nobody's")
    assert ("r0" in live_ids(fleet), fleet.num_in_line) == (True, 1)
    fleet.cancel_waiting(last)
    assert fleet.num_in_line == 0


def test_a_seat_that_is_given_up_without_a_report_is_room_at_once() -> None:
    """Of many engines, all full, the one whose requests are taken back is the one that is asked."""
    engine_ids = [f"e{number}" for number in range(8)]
    fleet = make_fleet(*engine_ids)
    placed: dict[str, Placement] = {}
    for number in range(200):
        placement = fleet.admit(ask(f"r{number}"))
        if placement is not None:
            placed[f"r{number}"] = placement
    assert len(placed) < 200

    for engine_id in engine_ids:
        on_it = [name for name, placement in placed.items() if placement.engine_id == engine_id]
        for name in on_it:
            fleet.cancel(name)

        called = fleet.take_called()
        assert {placement.engine_id for placement in called.values()} == {engine_id}
        assert len(called) == len(on_it)


# --- reports --------------------------------------------------------------------------------


def test_service_is_charged_as_it_is_processed() -> None:
    """Each report adds what the request moved by, and the last one settles it."""
    fleet = make_fleet("e1")
    fleet.admit(ask("r1"))

    fleet.on_report("e1", progress(1, [live("r1", done=(60, 0))]))
    assert tenant(fleet, "acme")["service"] == 60.0
    fleet.on_report("e1", progress(2, [live("r1", done=(100, 5))]))
    assert tenant(fleet, "acme")["service"] == 110.0
    fleet.on_report("e1", progress(3, gone=[finished("r1", done=(100, 9))]))
    assert tenant(fleet, "acme")["service"] == 118.0
    assert live_ids(fleet) == set()


def test_a_lost_report_is_made_good_by_the_next() -> None:
    """Counts are cumulative, so the next report carries what a lost one said."""
    fleet = make_fleet("e1")
    fleet.admit(ask("r1"))

    fleet.on_report("e1", progress(2, [live("r1", done=(100, 5))]))

    assert tenant(fleet, "acme")["service"] == 110.0


def test_a_repeated_or_late_report_changes_nothing() -> None:
    """The same report twice, or an older one after it, leaves everything as it was."""
    fleet = make_fleet("e1")
    fleet.admit(ask("r1"))
    fleet.admit(ask("r2"))
    early = progress(1, [live("r1", done=(50, 0)), live("r2", done=(50, 0))])
    late = progress(2, [live("r1", done=(100, 5))], [finished("r2", done=(100, 9))])
    fleet.on_report("e1", early)
    fleet.on_report("e1", late)
    before = fleet.checkpoint()

    fleet.on_report("e1", late)
    fleet.on_report("e1", early)

    assert fleet.checkpoint() == before


def test_counts_only_grow() -> None:
    """An engine that says less of a request than before takes no service back."""
    fleet = make_fleet("e1")
    fleet.admit(ask("r1"))
    fleet.on_report("e1", progress(1, [live("r1", done=(50, 5))]))

    fleet.on_report("e1", progress(2, [live("r1", done=(100, 3))]))

    assert tenant(fleet, "acme")["service"] == 110.0


def test_a_request_that_nobody_announced_is_adopted() -> None:
    """A gateway that could not ask placed it by itself; the next full report settles its past."""
    fleet = make_fleet("e1")

    fleet.on_report("e1", progress(1, [live("r1", done=(100, 5), priority=3)]))
    assert live_ids(fleet) == {"r1"}
    assert fleet.priority_changes("e1") == {"r1": LEVEL}
    fleet.on_report(
        "e1", progress(2, [live("r1", done=(100, 6))], is_full=True, totals={"acme": (100, 6)})
    )
    assert tenant(fleet, "acme")["counter"] == 112.0


def test_a_full_report_drops_what_the_engine_no_longer_has() -> None:
    """The end of a request was lost: its charge is settled, and it is gone."""
    fleet = make_fleet("e1")
    fleet.admit(ask("ended"))
    fleet.admit(ask("coming"))
    fleet.on_report("e1", progress(1, [live("ended", done=(100, 5))]))

    fleet.on_report("e1", progress(3, is_full=True, totals={"acme": (100, 9)}))

    assert live_ids(fleet) == {"coming"}
    assert tenant(fleet, "acme")["service"] == 118.0


def test_an_engine_has_to_join_before_it_reports() -> None:
    """A router that has just started knows no engine, and says so."""
    fleet = make_fleet()

    with pytest.raises(UnknownEngineError, match="e1 has not joined"):
        fleet.on_report("e1", progress(1))
    with pytest.raises(UnknownEngineError):
        fleet.priority_changes("e1")


def test_losing_an_engine_gives_back_what_was_reserved() -> None:
    """Its requests are named, their input not processed is given back, the rest stays charged."""
    fleet = make_fleet("e1")
    fleet.admit(ask("r1"))
    fleet.admit(ask("r2"))
    fleet.on_report("e1", progress(1, [live("r1", done=(30, 0))]))
    assert tenant(fleet, "acme")["counter"] == 100.0

    assert sorted(fleet.leave("e1")) == ["r1", "r2"]

    assert tenant(fleet, "acme")["counter"] == 30.0
    assert fleet.leave("e1") == []


def test_an_engine_that_drains_keeps_what_it_has_and_gets_nothing_new() -> None:
    """Its requests are charged and ranked as ever; new ones go elsewhere, warm or not."""
    fleet = make_fleet("engine-a")
    place(fleet, ask("r1", conversation="talk"))
    fleet.join("engine-b", CAPACITY)
    fleet.on_report("engine-b", progress(0, is_full=True))

    fleet.drain("engine-a")

    placed = [place(fleet, ask(f"new-{i}", conversation="talk")).engine_id for i in range(6)]
    assert set(placed) == {"engine-b"}
    fleet.on_report("engine-a", progress(1, [live("r1", done=(100, 5), priority=9)]))
    assert fleet.priority_changes("engine-a").keys() == {"r1"}
    assert tenant(fleet, "acme")["service"] == 100 + 2 * 5
    assert (engine(fleet, "engine-a")["draining"], engine(fleet, "engine-b")["draining"]) == (
        True,
        False,
    )
    assert fleet.leave("engine-a") == ["r1"]


def test_while_all_engines_drain_requests_wait_for_the_next_one() -> None:
    """They are not refused: whoever drains is about to be replaced."""
    fleet = make_fleet("engine-a", "engine-b")
    fleet.drain("engine-a")
    fleet.drain("engine-b")
    assert fleet.admit(ask("r1")) is None
    assert fleet.take_called() == {}

    fleet.join("engine-c", CAPACITY)

    assert fleet.take_called() == {"r1": Placement("engine-c", LEVEL)}


def test_an_engine_that_has_not_joined_cannot_drain() -> None:
    """Nobody knows it."""
    with pytest.raises(UnknownEngineError):
        make_fleet().drain("engine-a")


def test_an_engine_given_up_too_early_comes_back_without_loss() -> None:
    """What it did while it was thought dead is charged once, and its requests are adopted."""
    fleet = make_fleet("e1")
    fleet.admit(ask("r1"))
    fleet.on_report("e1", progress(1, [live("r1", done=(100, 5))]))
    fleet.leave("e1")

    fleet.join("e1", CAPACITY)
    fleet.on_report(
        "e1", progress(9, [live("r1", done=(100, 8))], is_full=True, totals={"acme": (100, 8)})
    )

    assert live_ids(fleet) == {"r1"}
    assert tenant(fleet, "acme")["counter"] == tenant(fleet, "acme")["service"] == 116.0


def test_an_engine_restarted_under_its_name_counts_from_nought() -> None:
    """Steps that begin again mean totals that begin again: they add to what was counted."""
    fleet = make_fleet("e1")
    fleet.admit(ask("r1"))
    fleet.on_report("e1", progress(50, [live("r1", done=(100, 5))]))

    fleet.join("e1", CAPACITY)
    fleet.on_report(
        "e1", progress(2, [live("r2", done=(10, 0))], is_full=True, totals={"acme": (10, 0)})
    )

    assert live_ids(fleet) == {"r2"}
    assert tenant(fleet, "acme")["service"] == 120.0


# --- priorities -----------------------------------------------------------------------------


def two_tenants(clock: HeldClock, quantum: float = 0.0) -> FleetScheduler:
    """One engine with a request each of ``busy`` and ``quiet``, ranked once while equal."""
    fleet = make_fleet("e1", clock=clock, quantum=quantum)
    for name in ("busy", "quiet"):
        fleet.admit(ask(name, name))
    fleet.on_report("e1", progress(1, [live("busy", "busy"), live("quiet", "quiet")]))
    assert fleet.priority_changes("e1") == {}
    return fleet


def test_priorities_are_recomputed_at_a_set_rate_and_sent_as_changes() -> None:
    """Nothing changes before it is time; then only what differs is sent, and only once."""
    clock = HeldClock()
    fleet = two_tenants(clock)
    fleet.on_report("e1", progress(2, [live("busy", "busy", done=(100, 50))]))

    clock.now_s += UPDATE_S / 2
    assert fleet.priority_changes("e1") == {}
    clock.now_s += UPDATE_S
    assert fleet.priority_changes("e1") == {"quiet": AHEAD}
    assert fleet.priority_changes("e1") == {}


def test_changes_that_got_lost_are_sent_again() -> None:
    """An engine that still reports its old priority is told anew."""
    clock = HeldClock()
    fleet = two_tenants(clock)
    fleet.on_report("e1", progress(2, [live("busy", "busy", done=(100, 50))]))
    clock.now_s += UPDATE_S
    fleet.priority_changes("e1")

    fleet.on_report("e1", progress(3, [live("quiet", "quiet", priority=LEVEL)]))

    assert fleet.priority_changes("e1") == {"quiet": AHEAD}


def test_requests_on_their_way_are_not_sent_priorities() -> None:
    """An engine is told only of requests that it has; those that arrive late are put right."""
    clock = HeldClock()
    fleet = two_tenants(clock)
    assert fleet.admit(ask("late", "quiet")) == Placement("e1", LEVEL)
    fleet.on_report("e1", progress(2, [live("busy", "busy", done=(100, 50))]))
    clock.now_s += UPDATE_S

    assert fleet.priority_changes("e1") == {"quiet": AHEAD}
    fleet.on_report("e1", progress(3, [live("late", "quiet", is_running=False)]))
    assert fleet.priority_changes("e1") == {"late": AHEAD}


def test_nobody_is_told_anything_while_the_order_stays() -> None:
    """A tenant that goes leaves no gap that others would have to close up."""
    clock = HeldClock()
    fleet = make_fleet("e1", clock=clock, quantum=0.0)
    tenants = [f"t{number}" for number in range(5)]
    for name in tenants:
        fleet.admit(ask(name, name))
    served = {name: live(name, name, done=(100, 9 * place)) for place, name in enumerate(tenants)}
    fleet.on_report("e1", progress(1, list(served.values())))
    clock.now_s += UPDATE_S
    told = dict.fromkeys(tenants, LEVEL) | fleet.priority_changes("e1")
    assert sorted(told, key=told.__getitem__) == tenants

    first = FinishedRequest("t0", "t0", 100, 100, 1, "stop")
    fleet.on_report("e1", progress(2, gone=[first]))
    clock.now_s += UPDATE_S

    assert fleet.priority_changes("e1") == {}


def test_counters_within_a_quantum_change_no_priority() -> None:
    """Tenants about equally served run side by side."""
    clock = HeldClock()
    fleet = two_tenants(clock, quantum=200.0)
    fleet.on_report("e1", progress(2, [live("busy", "busy", done=(100, 50))]))
    clock.now_s += UPDATE_S

    assert fleet.priority_changes("e1") == {}


def test_a_clock_that_jumps_back_does_not_stop_the_ranking() -> None:
    """After an hour's step back the next ranking comes one update later, not one hour."""
    clock = HeldClock()
    fleet = two_tenants(clock)
    clock.now_s -= 3600.0
    fleet.on_report("e1", progress(2, [live("busy", "busy", done=(100, 50))]))
    fleet.priority_changes("e1")

    clock.now_s += 1.5 * UPDATE_S

    assert fleet.priority_changes("e1") == {"quiet": AHEAD}


def test_a_policy_is_told_of_steps_that_never_run_back() -> None:
    """An engine that joins has made no steps yet: that does not undo those of the others."""
    told: list[int] = []

    class Counting(FirstComeFirstServed):
        def rerank(self, now_s: float, num_steps: int) -> None:
            told.append(num_steps)

    clock = HeldClock()
    fleet = FleetScheduler(
        Counting, clock=clock, random=Random(0), service=ServiceWeights(), limits=FleetLimits()
    )
    for engine_id, step in (("e1", 100), ("e2", 40)):
        fleet.join(engine_id, CAPACITY)
        fleet.on_report(engine_id, progress(0, is_full=True))
        fleet.on_report(engine_id, progress(step))
        clock.now_s += UPDATE_S
        fleet.priority_changes(engine_id)

    assert told == [100, 120]


def test_restored_requests_are_timed_by_the_new_fleets_clock() -> None:
    """When they were admitted was said by a clock that is gone."""
    clock = HeldClock()
    old = make_fleet("e1", clock=clock)
    clock.now_s += 5000.0
    old.admit(ask("r1"))
    new = make_fleet()

    new.restore(over_the_wire(old.checkpoint()))

    [restored] = new.checkpoint().requests
    assert restored.admitted_s == 0.0


def test_new_weights_take_effect_while_requests_run() -> None:
    """A tenant whose weight grows falls behind less quickly; a bad weight changes nothing."""
    clock = HeldClock()
    fleet = two_tenants(clock)
    fleet.set_tenants({"busy": TenantShare(4.0), "quiet": TenantShare(1.0)})
    with pytest.raises(InvalidWeightError, match="tenant quiet"):
        fleet.set_tenants({"busy": TenantShare(1.0), "quiet": TenantShare(0.0)})

    fleet.on_report(
        "e1",
        progress(2, [live("busy", "busy", done=(100, 50)), live("quiet", "quiet", done=(100, 50))]),
    )
    clock.now_s += UPDATE_S

    assert fleet.priority_changes("e1") == {"busy": AHEAD}
    assert tenant(fleet, "busy")["entitled_share"] == 0.8


# --- a router's death -----------------------------------------------------------------------


def busy_fleet(clock: HeldClock) -> FleetScheduler:
    """Two engines, three tenants, requests waiting, running, finished and on their way."""
    fleet = make_fleet("e1", "e2", clock=clock)
    fleet.set_tenants({"a": TenantShare(2.0)})
    for number in range(9):
        fleet.admit(ask(f"r{number}", "abc"[number % 3], conversation=f"c{number}"))
    placed = {request.request_id: request for request in fleet.checkpoint().requests}
    for engine_id in ("e1", "e2"):
        here = [request for request in placed.values() if request.engine_id == engine_id]
        fleet.on_report(
            engine_id,
            progress(
                7,
                [
                    live(request.request_id, request.tenant, done=(40 * number, number))
                    for number, request in enumerate(here[1:3])
                ],
                [finished(here[0].request_id, here[0].tenant, done=(100, 20))],
            ),
        )
    fleet.priority_changes("e1")
    return fleet


def full_reports(fleet: FleetScheduler) -> dict[str, EngineProgress]:
    """What the engines behind a fleet say when they have nothing new."""
    checkpoint = fleet.checkpoint()
    return {
        engine_id: progress(
            account.step,
            [
                live(
                    request.request_id,
                    request.tenant,
                    conversation=request.conversation,
                    done=(request.prompt_done, request.output_done),
                    priority=request.priority,
                    is_running=request.is_running,
                )
                for request in checkpoint.requests
                if request.engine_id == engine_id and request.is_seen
            ],
            is_full=True,
            totals={
                name: (tokens.prompt, tokens.output) for name, tokens in account.counted.items()
            },
        )
        for engine_id, account in checkpoint.ledger.engines.items()
    }


def over_the_wire(checkpoint: FleetCheckpoint) -> FleetCheckpoint:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(checkpoint), type=FleetCheckpoint)


def test_a_checkpoint_and_full_reports_bring_everything_back() -> None:
    """When nothing happened in between, the new fleet is the old one to the last digit."""
    old = busy_fleet(HeldClock())
    new = make_fleet()
    new.set_tenants({"a": TenantShare(2.0)})

    new.restore(over_the_wire(old.checkpoint()))
    for engine_id, report in full_reports(old).items():
        new.join(engine_id, CAPACITY)
        new.on_report(engine_id, report)

    assert new.checkpoint().requests == old.checkpoint().requests
    assert new.checkpoint().ledger == old.checkpoint().ledger
    assert new.snapshot()["tenants"] == old.snapshot()["tenants"]


def test_what_engines_did_without_a_router_is_charged_from_a_checkpoint() -> None:
    """Requests moved, ended and came while there was no router: all of it is settled."""
    old = make_fleet("e1")
    old.admit(ask("moved"))
    old.admit(ask("ended"))
    old.on_report("e1", progress(5, [live("moved"), live("ended", done=(100, 1))]))
    new = make_fleet()

    new.restore(old.checkpoint())
    new.join("e1", CAPACITY)
    new.on_report(
        "e1",
        progress(
            9,
            [live("moved", done=(100, 3)), live("came", done=(100, 2))],
            is_full=True,
            totals={"acme": (300, 12)},
        ),
    )

    assert live_ids(new) == {"moved", "came"}
    assert tenant(new, "acme")["counter"] == tenant(new, "acme")["service"] == 324.0


def test_without_a_checkpoint_service_comes_back_and_counters_start_level() -> None:
    """Totals are taken from the engines; nobody is owed what was received before."""
    clock = HeldClock()
    fleet = make_fleet(clock=clock)
    fleet.join("e1", CAPACITY)

    fleet.on_report(
        "e1",
        progress(
            1000,
            [live("r1", "old", done=(100, 50)), live("r2", "new", done=(100, 5), priority=3)],
            is_full=True,
            totals={"old": (10**9, 10**9), "new": (100, 5)},
        ),
    )

    assert tenant(fleet, "old")["service"] == 3.0e9
    assert tenant(fleet, "old")["counter"] == tenant(fleet, "new")["counter"] == 0.0
    assert fleet.priority_changes("e1") == {"r2": LEVEL}


def test_requests_of_an_engine_that_does_not_come_back_expire() -> None:
    """A restored request waits for its engine only for so long."""
    clock = HeldClock()
    fleet = make_fleet(clock=clock)
    fleet.restore(busy_fleet(HeldClock()).checkpoint())
    fleet.join("e3", CAPACITY)
    assert len(live_ids(fleet)) == 7

    clock.now_s += UNSEEN_TIMEOUT_S + 1
    fleet.priority_changes("e3")

    assert live_ids(fleet) == set()


def test_a_checkpoint_is_refused_by_a_fleet_at_work() -> None:
    """Restoring would mix two pasts; nothing is changed."""
    fleet = make_fleet("e1")
    fleet.admit(ask("r1"))

    with pytest.raises(NotFreshError, match="1 engines and 1 live requests"):
        fleet.restore(busy_fleet(HeldClock()).checkpoint())

    assert live_ids(fleet) == {"r1"}


def test_a_checkpoint_does_not_change_with_its_fleet() -> None:
    """It may be sent later than it was taken."""
    fleet = busy_fleet(HeldClock())
    checkpoint = fleet.checkpoint()
    encoded = msgspec.msgpack.encode(checkpoint)

    for engine_id in ("e1", "e2"):
        fleet.on_report(engine_id, progress(20, is_full=True, totals={"a": (5000, 5000)}))

    assert msgspec.msgpack.encode(checkpoint) == encoded


# --- limits of a tenant's own ----------------------------------------------------------------


def limited_fleet() -> FleetScheduler:
    """Two engines; tenant acme may have two requests at once."""
    fleet = make_fleet("e1", "e2")
    fleet.set_tenants({"acme": TenantShare(max_concurrent=2)})
    return fleet


def test_a_tenant_past_its_own_limit_is_refused_and_leaves_no_trace() -> None:
    """The others are let in, and so is it when one of its requests has ended."""
    fleet = limited_fleet()
    placement = place(fleet, ask("r1"))
    fleet.admit(ask("r2"))

    with pytest.raises(QuotaExceededError, match="max_concurrent of 2"):
        fleet.admit(ask("r3"))
    fleet.admit(ask("o1", "other"))
    assert (tenant(fleet, "acme")["live"], tenant(fleet, "acme")["rejected"]) == (2, 1)
    fleet.on_report(placement.engine_id, progress(1, [], [finished("r1", done=(100, 9))]))
    fleet.admit(ask("r3"))


@pytest.mark.parametrize("end", ["cancel", "leave", "unseen"])
def test_however_a_request_ends_its_reservation_goes_with_it(end: str) -> None:
    """Cancelled by its gateway, lost with its engine, or never seen there."""
    clock = HeldClock()
    fleet = make_fleet("e1", clock=clock)
    fleet.set_tenants({"acme": TenantShare(tokens_per_minute=200)})
    fleet.admit(ask("r1"))
    assert tenant(fleet, "acme")["tokens_reserved"] == 200

    if end == "cancel":
        fleet.cancel("r1")
    elif end == "leave":
        fleet.leave("e1")
    else:
        clock.now_s += UNSEEN_TIMEOUT_S + 1
        fleet.priority_changes("e1")

    assert tenant(fleet, "acme")["tokens_reserved"] == 0


def test_a_request_in_line_counts_and_may_ask_again() -> None:
    """It was let in: asking for its place again is no second request; leaving frees its room."""
    fleet = make_fleet("e1")
    fleet.set_tenants({"acme": TenantShare(max_concurrent=50)})
    placements = [fleet.admit(ask(f"r{number}")) for number in range(50)]
    assert placements[-1] is None

    with pytest.raises(QuotaExceededError):
        fleet.admit(ask("more"))
    assert fleet.admit(ask("r49")) is None
    fleet.cancel("r49")
    assert fleet.admit(ask("more")) is None


def test_without_an_engine_nothing_is_reserved() -> None:
    """A request that no engine can take has not counted."""
    fleet = make_fleet()
    fleet.set_tenants({"acme": TenantShare(max_concurrent=1)})
    for _ in range(2):
        with pytest.raises(NoEngineError):
            fleet.admit(ask("r1"))


def test_a_request_that_has_lost_its_engine_is_not_refused() -> None:
    """It was let in before, also where this router knows nothing of it."""
    fleet = limited_fleet()
    fleet.admit(ask("r1"))
    fleet.admit(ask("r2"))

    assert place(fleet, ask("r3"), avoid=frozenset({"e1"})).engine_id == "e2"
    with pytest.raises(QuotaExceededError):
        fleet.admit(ask("r4"))


def test_a_new_fleet_goes_on_with_what_counts_against_the_limits() -> None:
    """Live requests and what was used in the last minute, as the checkpoint has them."""
    fleet, heir = make_fleet("e1"), make_fleet()
    shares = {"acme": TenantShare(tokens_per_minute=300)}
    for each in (fleet, heir):
        each.set_tenants(shares)
    fleet.admit(ask("r1"))
    fleet.on_report("e1", progress(1, [live("r1", done=(100, 50))]))
    heir.restore(fleet.checkpoint())

    restored = tenant(heir, "acme")
    assert (restored["tokens_used_last_minute"], restored["tokens_reserved"]) == (150, 50)
    heir.join("e1", CAPACITY)
    with pytest.raises(QuotaExceededError):
        heir.admit(ask("r2", prompt_tokens=1))


# --- what people read -----------------------------------------------------------------------


def test_the_snapshot_tells_tenants_engines_and_totals() -> None:
    """Shares received and entitled, requests by state, engines as they last reported."""
    fleet = make_fleet("e1")
    limited = TenantShare(3.0, tokens_per_minute=1000)
    fleet.set_tenants({"a": limited, "idle": TenantShare(5.0)})
    for request_id, name in (("a1", "a"), ("a2", "a"), ("b1", "b")):
        fleet.admit(ask(request_id, name))
    fleet.on_report(
        "e1",
        progress(
            1,
            [
                live("a1", "a", done=(100, 0)),
                live("a2", "a", is_running=False),
                live("b1", "b", done=(50, 25)),
            ],
        ),
    )
    fleet.priority_changes("e1")

    assert msgspec.json.decode(msgspec.json.encode(fleet.snapshot())) == fleet.snapshot()
    assert fleet.snapshot()["policy"] == "vtc"
    assert tenant(fleet, "a") == {
        "weight": 3.0,
        "class": "interactive",
        "tokens_per_minute": 1000,
        "max_concurrent": None,
        "tokens_used_last_minute": 100,
        "tokens_reserved": 300,
        "rejected": 0,
        "service": 100.0,
        "prompt_tokens": 100,
        "output_tokens": 0,
        "service_share": 0.5,
        "entitled_share": 0.75,
        "counter": pytest.approx(100 / 3),
        "rank": 0,
        "live": 2,
        "running": 1,
        "waiting": 1,
    }
    assert tenant(fleet, "b")["counter"] == 150.0
    assert tenant(fleet, "b")["rank"] == 1
    assert tenant(fleet, "idle")["entitled_share"] == 0.0
    assert tenant(fleet, "idle")["rank"] is None
    here = engine(fleet, "e1")
    assert (here["live"], here["running"], here["waiting"], here["blocks_used"]) == (3, 2, 1, 7)
    assert here["switches"]["preemptions"] == 3
    assert fleet.snapshot()["totals"] == {
        "service": 200.0,
        "prompt_tokens": 150,
        "output_tokens": 25,
        "in_line": 0,
        "live": 3,
        "running": 2,
        "waiting": 1,
    }


# --- settings that change ---------------------------------------------------------------------


@pytest.mark.parametrize("before", POLICIES)
@pytest.mark.parametrize("after", POLICIES)
def test_a_policy_can_be_exchanged_while_requests_run(before: str, after: str) -> None:
    """Whichever they are: no request is lost or moved, service goes on, and all can end."""
    fleet = make_fleet("engine-a")
    limits = FleetLimits(update_s=UPDATE_S)
    fleet.go_by(policy_factory(before, OPTIONS), service=ServiceWeights(), limits=limits)
    for number in range(12):
        fleet.admit(ask(f"r{number}", f"tenant-{number % 3}"))
    running = [live(f"r{number}", f"tenant-{number % 3}", done=(100, 3)) for number in range(6)]
    fleet.on_report("engine-a", progress(1, running))

    fleet.go_by(policy_factory(after, OPTIONS), service=ServiceWeights(1.0, 4.0), limits=limits)

    totals: Any = fleet.snapshot()["totals"]
    assert (fleet.snapshot()["policy"], totals["live"]) == (after, 12)
    assert totals["service"] == 6 * (100 + 4 * 3)
    fleet.priority_changes("engine-a")
    gone = [finished(f"r{number}", f"tenant-{number % 3}", done=(100, 5)) for number in range(6)]
    fleet.on_report("engine-a", progress(2, gone=gone))
    fleet.take_called()
    for number in range(6, 12):
        fleet.cancel(f"r{number}")
    assert live_ids(fleet) == set()
    totals = fleet.snapshot()["totals"]
    assert (totals["live"], totals["service"]) == (0, 6 * (100 + 4 * 5))


def test_a_new_policys_priorities_outrank_nobody_until_engines_have_them() -> None:
    """Its numbers are others: those that wait stay in line, though all of them are lower."""
    fleet = make_fleet("engine-a")
    running: list[LiveRequest] = []
    while fleet.admit(ask(f"r{fleet.num_live}")) is not None:
        running.append(live(f"r{len(running)}"))
    fleet.on_report("engine-a", progress(1, running[: CAPACITY.max_num_seqs]))
    fleet.priority_changes("engine-a")
    assert fleet.take_called() == {}

    limits = FleetLimits(update_s=UPDATE_S)
    fleet.go_by(FirstComeFirstServed, service=ServiceWeights(), limits=limits)

    assert (fleet.take_called(), fleet.num_in_line) == ({}, 1)
    assert set(fleet.priority_changes("engine-a").values()) == {0}
    assert (fleet.take_called(), fleet.num_in_line) == ({}, 1)


def test_new_parameters_leave_a_policy_its_counters() -> None:
    """Who has received more is still behind; the new quantum decides whether that counts."""
    clock = HeldClock()
    fleet = make_fleet("engine-a", clock=clock)
    for name in ("a", "b"):
        fleet.admit(ask(name, name))
    fleet.on_report("engine-a", progress(1, [live("a", "a", done=(100, 9)), live("b", "b")]))
    counters = {name: tenant(fleet, name)["counter"] for name in ("a", "b")}
    assert counters["a"] > counters["b"]

    fleet.go_by(
        partial(VirtualTokenCounter, quantum=1e6),
        service=ServiceWeights(),
        limits=FleetLimits(update_s=UPDATE_S),
    )

    assert {name: tenant(fleet, name)["counter"] for name in ("a", "b")} == counters
    fleet.priority_changes("engine-a")
    assert tenant(fleet, "a")["rank"] == tenant(fleet, "b")["rank"]


class Unmakeable(FirstComeFirstServed):
    """A policy that fails before it has anything."""

    def __init__(self, *_: object) -> None:
        raise ValueError("it cannot be made")


class Overburdened(FirstComeFirstServed):
    """A policy that fails in the middle of taking over."""

    def arrive(self, request: TrackedRequest) -> None:
        request.note = "mine"
        if request.request_id == "r2":
            raise ValueError("it cannot be made")


@pytest.mark.parametrize("policy", [Unmakeable, Overburdened])
def test_a_policy_that_cannot_be_made_changes_nothing(policy: PolicyFactory) -> None:
    """The old one goes on, with what it had noted of the requests and the prices that it had."""
    fleet = make_fleet("engine-a")
    for number in range(4):
        fleet.admit(ask(f"r{number}"))
    before = fleet.snapshot()

    with pytest.raises(ValueError, match="it cannot be made"):
        fleet.go_by(policy, service=ServiceWeights(9.0, 9.0), limits=FleetLimits())

    assert fleet.snapshot() == before
    fleet.priority_changes("engine-a")
    assert len(fleet.leave("engine-a")) == 4


def test_the_longest_wait_may_change_for_those_who_wait() -> None:
    """Who has waited for longer than what is allowed now runs first."""
    clock = HeldClock()
    fleet = make_fleet("engine-a", clock=clock)
    fleet.admit(ask("r1"))
    fleet.on_report("engine-a", progress(1, [live("r1", is_running=False, priority=5)]))
    clock.now_s += 5.0
    assert fleet.priority_changes("engine-a")["r1"] >= 0

    limits = FleetLimits(update_s=UPDATE_S, max_wait_s=4.0)
    fleet.go_by(partial(VirtualTokenCounter, quantum=0.0), service=ServiceWeights(), limits=limits)

    assert fleet.priority_changes("engine-a") == {"r1": STARVING}


# --- pressure -----------------------------------------------------------------------------------


def test_the_pressure_is_of_those_who_have_not_run_and_for_whom_somebody_waits() -> None:
    """In the line or on an engine; batch work takes seats and waits for nobody."""
    clock = HeldClock()
    fleet = make_fleet("engine-a", clock=clock)
    fleet.set_tenants({"nightly": TenantShare(service_class=ServiceClass.BATCH)})
    for name in ("acme", "nightly"):
        fleet.admit(ask(f"{name}-runs", name))
        fleet.admit(ask(f"{name}-waits", name))
    running = [live(f"{name}-runs", name, done=(100, 1)) for name in ("acme", "nightly")]
    fleet.on_report("engine-a", progress(1, running))
    clock.now_s += 3.0

    pressure = fleet.take_pressure()

    assert (pressure.delay_s, pressure.busy_share) == (3.0, 4 / CAPACITY.max_num_seqs)


# --- turns that call tools ------------------------------------------------------------------------


@pytest.mark.parametrize(("blocks_used", "is_pinned"), [(10, True), (70, True), (95, False)])
def test_a_pin_pays_only_while_memory_is_cheaper_than_coming_back(
    blocks_used: int,
    is_pinned: bool,  # noqa: FBT001
) -> None:
    """By the engine's own report: how full it is, and what its KV would take to have again."""
    fleet = make_fleet("e1", max_tool_ttl_s=30.0)
    assert fleet.take_pins("e1") == {}
    # 1,600 tokens' KV takes 0.8 s, and a tool perhaps a second.
    report = msgspec.structs.replace(progress(1), blocks_used=blocks_used, reload_token_s=0.5e-3)
    fleet.on_report("e1", report)
    fleet.admit(ask("r1", conversation="c"))

    fleet.tools_called("acme", "c", ["search"])

    assert ("r1" in (fleet.take_pins("e1") or {})) == is_pinned


def test_pins_go_with_their_engine() -> None:
    """An engine that is back under its name has nothing to pin."""
    fleet = make_fleet("e1", max_tool_ttl_s=30.0)
    assert fleet.take_pins("e1") == {}
    fleet.admit(ask("r1", conversation="c"))
    fleet.tools_called("acme", "c", ["search"])
    fleet.leave("e1")
    fleet.tools_called("acme", "c", ["search"])

    fleet.join("e1", CAPACITY)

    assert fleet.take_pins("e1") == {}
