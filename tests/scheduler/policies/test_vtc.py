"""The virtual token counter: charges, reservations, lifts, and what it forgets."""

from collections.abc import Mapping
from itertools import count, permutations
from random import Random
from types import MappingProxyType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from app.settings import FairnessSettings
from scheduler.admission import Wishes
from scheduler.ledger import Tokens
from scheduler.policies.vtc import VirtualTokenCounter
from scheduler.service import ServiceWeights
from scheduler.shares import ServiceClass, TenantShare, TenantShares
from scheduler.tracking import TrackedRequest
from tests.scheduler.policies.stand_in import StandInEngine, make_policy, places
from tests.scheduler.policies.stand_in import make_request as waiting

SERVICE = ServiceWeights(input=1.0, output=2.0)
BATCH_LAG = 300.0
HEAD_START = 40.0


def make_vtc(
    weights: Mapping[str, float] = MappingProxyType({}),
    *,
    quantum: float = 0.0,
    batch_lag: float = 0.0,
    head_start: float = 0.0,
    max_idle_tenants: int = 100,
) -> VirtualTokenCounter:
    tenant_weights = TenantShares()
    tenant_weights.replace({tenant: TenantShare(weight) for tenant, weight in weights.items()})
    return VirtualTokenCounter(
        SERVICE,
        tenant_weights,
        quantum=quantum,
        batch_lag=batch_lag,
        head_start=head_start,
        max_idle_tenants=max_idle_tenants,
    )


_NUMBERS = count()


def make_request(
    tenant: str, prompt_tokens: int = 100, *, service_class: str | None = None
) -> TrackedRequest:
    return TrackedRequest(
        request_id=f"of {tenant}, {next(_NUMBERS)}",
        tenant=tenant,
        conversation=None,
        engine_id="e",
        arrival_s=0.0,
        prompt_tokens=prompt_tokens,
        max_output_tokens=None,
        wishes=Wishes(service_class=service_class),
    )


def start(vtc: VirtualTokenCounter, request: TrackedRequest) -> None:
    vtc.start(request)
    request.has_started = True


def advance(vtc: VirtualTokenCounter, request: TrackedRequest, prompt: int, output: int) -> None:
    request.prompt_done += prompt
    request.output_done += output
    vtc.progress(request, Tokens(prompt, output))


def backlogged(
    vtc: VirtualTokenCounter, *, num_waiting: int = 0, **outputs: int
) -> list[TrackedRequest]:
    """A request per tenant, given so many output tokens, and others that wait; all come at once."""
    requests = [make_request(tenant, prompt_tokens=0) for tenant in outputs]
    for request in requests:
        vtc.arrive(request)
        for _ in range(num_waiting):
            vtc.arrive(make_request(request.tenant))
    for request in requests:
        start(vtc, request)
        advance(vtc, request, 0, outputs[request.tenant])
    return requests


def test_waiting_costs_nothing() -> None:
    """However deep a tenant's queue, its counter stands until something of it runs."""
    vtc = make_vtc()
    for _ in range(1000):
        vtc.arrive(make_request("flood"))

    assert vtc.counters() == {"flood": 0.0}


def test_input_is_charged_whole_when_a_request_first_runs() -> None:
    """From the first step a request weighs its whole prompt, and computing it adds nothing."""
    vtc = make_vtc({"acme": 2.0})
    request = make_request("acme", prompt_tokens=100)
    vtc.arrive(request)

    start(vtc, request)
    assert vtc.counters() == {"acme": 50.0}
    advance(vtc, request, 60, 0)
    assert vtc.counters() == {"acme": 50.0}
    advance(vtc, request, 40, 10)
    assert vtc.counters() == {"acme": 60.0}


def test_an_abort_gives_back_the_input_that_was_not_processed() -> None:
    """What was processed stays charged, what was only reserved goes with the request."""
    vtc = make_vtc()
    request = make_request("acme", prompt_tokens=100)
    vtc.arrive(request)
    start(vtc, request)
    advance(vtc, request, 30, 0)

    vtc.depart(request)

    assert vtc.counters() == {"acme": 30.0}


def test_a_tenant_back_from_idle_is_lifted_to_the_least_that_wait() -> None:
    """Neither starved nor owed: it starts level with the waiting tenant that was served least."""
    vtc = make_vtc()
    backlogged(vtc, num_waiting=1, little=300, much=500)

    vtc.arrive(make_request("back"))

    assert vtc.counters()["back"] == 600.0


def test_one_that_never_waits_is_owed_nothing_and_lends_nobody_its_counter() -> None:
    """It always has something small under way, so it is never idle, beside one that has a queue."""
    vtc = make_vtc()
    [_, small] = backlogged(vtc, busy=500, small=10)
    vtc.arrive(make_request("busy"))

    vtc.arrive(make_request("new"))
    assert vtc.counters() == {"busy": 1000.0, "small": 20.0, "new": 1000.0}

    another = make_request("small")
    vtc.arrive(another)
    assert vtc.counters()["small"] == 1000.0
    vtc.depart(small)
    vtc.arrive(make_request("small"))
    assert vtc.counters()["small"] == 1000.0


def test_one_that_waits_is_not_lifted() -> None:
    """What it asked for and did not get is owed to it, however many requests it sends."""
    vtc = make_vtc()
    backlogged(vtc, num_waiting=1, behind=10, ahead=600)

    vtc.arrive(make_request("behind"))

    assert vtc.counters() == {"behind": 20.0, "ahead": 1200.0}


def test_with_nobody_waiting_a_tenant_is_lifted_to_the_last_that_did() -> None:
    """An empty fleet does not wipe out what was served before it emptied."""
    vtc = make_vtc()
    [last] = backlogged(vtc, last=500)
    vtc.depart(last)

    vtc.arrive(make_request("next"))

    assert vtc.counters()["next"] == 1000.0


def test_a_lift_never_lowers_a_counter() -> None:
    """A tenant that was served more than all others keeps what it was charged."""
    vtc = make_vtc()
    [much, _] = backlogged(vtc, much=500, little=10)
    vtc.depart(much)

    vtc.arrive(make_request("much"))

    assert vtc.counters()["much"] == 1000.0


def test_a_correction_does_not_undo_a_lift() -> None:
    """Charges taken back after a lift leave the tenant where it was lifted to."""
    vtc = make_vtc()
    vtc.settle("back", Tokens(0, 100))
    backlogged(vtc, busy=500)
    vtc.arrive(make_request("back"))

    vtc.settle("back", Tokens(0, -100))

    assert vtc.counters()["back"] == 1000.0


def test_a_correction_leaves_no_credit() -> None:
    """More taken back than was ever charged ends at nought."""
    vtc = make_vtc()
    vtc.settle("acme", Tokens(10, 0))
    vtc.settle("acme", Tokens(-50, 0))

    assert vtc.counters() == {"acme": 0.0}


def test_ranks_follow_the_counters_when_ranked_anew() -> None:
    """Between rankings priorities stand still; the least served tenant then runs first."""
    vtc = make_vtc(quantum=100.0)
    ahead, behind = backlogged(vtc, ahead=51, behind=0)
    assert places(vtc.priorities([ahead, behind])) == [0, 0]

    vtc.rerank(now_s=1.0, num_steps=0)

    assert places(vtc.priorities([ahead, behind])) == [1, 0]


def test_a_newcomer_runs_at_once_among_the_first() -> None:
    """A tenant that arrives between two rankings has the rank of the least served that wait."""
    vtc = make_vtc(quantum=100.0)
    least, most = backlogged(vtc, num_waiting=1, least=10, most=500)
    vtc.rerank(now_s=1.0, num_steps=0)
    newcomer = make_request("new")

    vtc.arrive(newcomer)

    assert places(vtc.priorities([newcomer, least, most])) == [0, 0, 1]


def test_of_equals_who_asks_for_little_goes_first() -> None:
    """A tenant back from idle does not wait behind the hundreds of one with the same counter."""
    vtc = make_vtc(quantum=100.0)
    crowd = [make_request("flood") for _ in range(100)]
    for request in crowd:
        vtc.arrive(request)
    vtc.rerank(now_s=1.0, num_steps=0)
    one = make_request("quiet")
    vtc.arrive(one)

    for _ in range(2):  # at once, and when all are ranked anew
        [first, *others] = vtc.priorities([one, *crowd])
        assert first < min(others)
        vtc.rerank(now_s=2.0, num_steps=0)


def test_who_asks_for_little_goes_first_from_a_floods_first_moment_on() -> None:
    """Before anything has been ranked: then a flood may have all places by the first ranking."""
    vtc = make_vtc(quantum=100.0)
    crowd = [make_request("flood") for _ in range(4)]
    for request in crowd:
        vtc.arrive(request)
    one = make_request("quiet")
    vtc.arrive(one)

    [first, *others] = vtc.priorities([one, *crowd])
    assert first < min(others)


def test_what_all_ask_for_is_known_between_two_rankings(seed: int) -> None:
    """A newcomer is placed as the next ranking will place it, whoever came and went before."""
    choose = Random(seed)
    vtc = make_vtc(quantum=1e9)
    live: list[TrackedRequest] = []
    for number in range(300):
        if live and choose.random() < 0.45:
            vtc.depart(live.pop(choose.randrange(len(live))))
        else:
            live.append(make_request(choose.choice("abcd")))
            vtc.arrive(live[-1])
        if choose.random() < 0.1:
            vtc.reweigh()
        newcomer = make_request(f"new-{number}")
        vtc.arrive(newcomer)
        before = vtc.priorities([newcomer])
        if choose.random() < 0.2:
            vtc.rerank(now_s=float(number), num_steps=0)
            assert places(before) == places(vtc.priorities([newcomer]))
            assert before[0] % 2 == vtc.priorities([newcomer])[0] % 2
        vtc.depart(newcomer)


@pytest.mark.parametrize("head_start", [0.0, 240.0])
def test_who_asks_for_little_goes_first_until_its_head_start_is_spent(head_start: float) -> None:
    """A burst of a quiet tenant need not wait for a flood to be given as much; a large one does."""
    ahead = int(100.0 + head_start) // 2
    assert _goes_before_a_flood(ahead, head_start)
    assert not _goes_before_a_flood(ahead + 1, head_start)


def _goes_before_a_flood(output_tokens: int, head_start: float) -> bool:
    vtc = make_vtc(quantum=100.0, head_start=head_start)
    crowd = [make_request("flood") for _ in range(100)]
    for request in crowd:
        vtc.arrive(request)
    [served] = backlogged(vtc, quiet=output_tokens)
    vtc.rerank(now_s=1.0, num_steps=0)
    [own] = vtc.priorities([served])
    return own < min(vtc.priorities(crowd))


def test_who_turns_into_a_flood_loses_its_head_start_at_once() -> None:
    """Before all are ranked anew: the first second of a flood is not to be all its own."""
    vtc = make_vtc(quantum=100.0, head_start=1000.0)
    backlogged(vtc, num_waiting=4, a=300, b=300)
    requests = [make_request("turning")]
    vtc.arrive(requests[0])
    vtc.rerank(now_s=1.0, num_steps=0)
    vtc.rerank(now_s=2.0, num_steps=0)
    modest = vtc.priorities(requests)[0]

    for _ in range(50):
        requests.append(make_request("turning"))
        vtc.arrive(requests[-1])

    between = vtc.priorities(requests)
    vtc.rerank(now_s=3.0, num_steps=0)
    assert min(between) > modest
    assert places(between) == places(vtc.priorities(requests))


def test_a_request_more_or_less_makes_nobody_ask_for_little() -> None:
    """Tenants that ask for about the same have one rank while their counters are about equal."""
    vtc = make_vtc(quantum=100.0)
    requests = [
        make_request(tenant) for tenant, count in (("a", 6), ("b", 10)) for _ in range(count)
    ]
    for request in requests:
        vtc.arrive(request)

    vtc.rerank(now_s=1.0, num_steps=0)

    assert len({*vtc.priorities(requests)}) == 1


def test_new_weights_price_what_is_to_come() -> None:
    """Service received keeps its price, reservations and later tokens have the new one."""
    weights = TenantShares()
    vtc = VirtualTokenCounter(SERVICE, weights, quantum=0.0)
    request = make_request("acme", prompt_tokens=100)
    vtc.arrive(request)
    start(vtc, request)
    advance(vtc, request, 40, 0)

    weights.replace({"acme": TenantShare(2.0)})
    vtc.reweigh()

    assert vtc.counters() == {"acme": 40.0 + 60.0 / 2}


def test_invented_names_do_not_fill_the_memory() -> None:
    """Of 100,000 tenants that came and went the latest are kept, and the lift is still right."""
    vtc = make_vtc(max_idle_tenants=100)
    for number in range(100_000):
        [request] = backlogged(vtc, **{f"invented {number}": 1})
        vtc.depart(request)

    assert len(vtc.counters()) == 100
    vtc.arrive(make_request("invented 0"))
    assert vtc.counters()["invented 0"] == 200_000.0


@pytest.mark.parametrize("keeps_live", [True, False])
def test_saved_counters_are_the_same_after_loading(keeps_live: bool) -> None:  # noqa: FBT001
    """A policy that loads what another saved holds the same against each tenant."""
    old = make_vtc({"acme": 3.0})
    requests = backlogged(old, acme=100, other=7)
    if not keeps_live:
        old.depart(requests.pop())
    new = make_vtc({"acme": 3.0})
    for request in requests:
        new.arrive(request)
        new.start(request)

    new.load(old.save())

    assert new.counters() == old.counters()
    for vtc in (old, new):
        vtc.arrive(make_request("next"))
    assert new.counters() == old.counters()


# --- classes --------------------------------------------------------------------------------


def test_batch_work_ranks_as_if_it_had_been_served_more() -> None:
    """Interactive work of a tenant that is ahead by less than the lag still goes first."""
    vtc = make_vtc(quantum=10.0, batch_lag=100.0)
    batch = make_request("behind", prompt_tokens=0, service_class="batch")
    vtc.arrive(batch)
    [interactive] = backlogged(vtc, ahead=40)
    vtc.rerank(now_s=1.0, num_steps=0)
    assert places(vtc.priorities([interactive, batch])) == [0, 1]

    advance(vtc, interactive, 0, 20)
    vtc.rerank(now_s=2.0, num_steps=0)

    assert places(vtc.priorities([interactive, batch])) == [1, 0]


def test_a_tenant_has_work_of_both_classes() -> None:
    """Both are charged to the one counter, and each request ranks by its own class."""
    vtc = make_vtc(batch_lag=100.0)
    talk, work = make_request("acme"), make_request("acme", service_class="batch")
    for request in (talk, work):
        vtc.arrive(request)
        start(vtc, request)
    vtc.rerank(now_s=1.0, num_steps=0)

    assert places(vtc.priorities([talk, work])) == [0, 1]
    assert vtc.counters() == {"acme": 200.0}


def test_a_tenant_of_class_batch_cannot_call_itself_interactive() -> None:
    """A request lowers itself or stays what its tenant is."""
    shares = TenantShares()
    shares.replace({"batch": TenantShare(service_class=ServiceClass.BATCH)})
    vtc = VirtualTokenCounter(SERVICE, shares, quantum=10.0, batch_lag=100.0)
    bold, plain = make_request("batch", service_class="interactive"), make_request("other")
    for request in (bold, plain):
        vtc.arrive(request)
    vtc.rerank(now_s=1.0, num_steps=0)

    assert places(vtc.priorities([bold, plain])) == [1, 0]


def test_a_tenant_is_lifted_to_those_of_its_class() -> None:
    """A second interactive tenant begins level with the first, whose burst may be spent."""
    vtc = make_vtc(batch_lag=1000.0)
    vtc.arrive(make_request("batch", service_class="batch"))
    backlogged(vtc, first=400)

    vtc.arrive(make_request("second"))
    vtc.arrive(make_request("more batch", service_class="batch"))

    assert vtc.counters() == {"batch": 0.0, "first": 800.0, "second": 800.0, "more batch": 0.0}


def test_a_class_new_to_the_fleet_is_lifted_to_the_other() -> None:
    """Batch work that comes upon interactive work lets it have its burst first."""
    vtc = make_vtc(quantum=10.0, batch_lag=100.0)
    [interactive] = backlogged(vtc, interactive=500)
    batch = make_request("batch", service_class="batch")

    vtc.arrive(batch)
    vtc.rerank(now_s=1.0, num_steps=0)

    assert vtc.counters()["batch"] == 1000.0
    assert places(vtc.priorities([interactive, batch])) == [0, 1]


def test_a_request_that_moves_keeps_its_tenant_backlogged() -> None:
    """It arrives at its new engine before it departs from the old one, under the same name."""
    vtc = make_vtc()
    old = make_request("acme")
    new = make_request("acme")
    new.request_id = old.request_id
    vtc.arrive(old)
    vtc.arrive(new)
    vtc.depart(old)

    [other] = backlogged(vtc, other=0)
    advance(vtc, new, 0, 50)
    vtc.rerank(now_s=1.0, num_steps=0)
    assert places(vtc.priorities([new, other])) == [1, 0]


def serve_waiting(
    tenants: Mapping[str, TenantShare], *, quantum: float, num_steps: int, draw: Random
) -> tuple[Mapping[str, float], float]:
    """Counters after steps of an engine on which everybody always waits, and their largest rise."""
    chosen = FairnessSettings(quantum=quantum, batch_lag=BATCH_LAG, head_start=HEAD_START)
    engine = StandInEngine(make_policy(chosen, **tenants), seats=2)
    largest_rise = 0.0
    for _ in range(num_steps):
        for tenant in tenants:
            queued = sum(request.tenant == tenant for request in engine.live)
            for _ in range(4 - queued):
                engine.add(waiting(tenant, prompt_tokens=draw.randint(1, 60), max_output_tokens=20))
        before = engine.policy.counters()
        engine.step()
        rises = (counter - before[tenant] for tenant, counter in engine.policy.counters().items())
        largest_rise = max(largest_rise, *rises)
    return engine.policy.counters(), largest_rise


@settings(max_examples=40, deadline=None)
@given(
    tenants=st.dictionaries(
        st.sampled_from("abcd"),
        st.builds(
            TenantShare,
            weight=st.sampled_from([0.5, 1.0, 2.0]),
            service_class=st.sampled_from(ServiceClass),
        ),
        min_size=2,
    ),
    quantum=st.sampled_from([1.0, 50.0]),
    num_steps=st.integers(1, 300),
    draw=st.randoms(use_true_random=False),
)
def test_counters_stay_within_the_bound_of_their_classes(
    tenants: dict[str, TenantShare], quantum: float, num_steps: int, draw: Random
) -> None:
    """A quantum and one rise. Interactive work may get the lag further ahead.

    Who asks for less than others do for its weight may get the head start further ahead.
    """
    counters, rise = serve_waiting(tenants, quantum=quantum, num_steps=num_steps, draw=draw)

    for ahead, behind in permutations(tenants, 2):
        classes = tenants[ahead].service_class, tenants[behind].service_class
        is_favoured = classes == (ServiceClass.INTERACTIVE, ServiceClass.BATCH)
        mean_asked = len(tenants) / sum(each.weight for each in tenants.values())
        is_modest = (
            1 / tenants[ahead].weight <= mean_asked and classes[0] is ServiceClass.INTERACTIVE
        )
        bound = quantum + rise + BATCH_LAG * is_favoured + HEAD_START * is_modest
        assert counters[ahead] - counters[behind] <= bound + 1e-6


def test_interactive_work_goes_first_and_batch_work_gets_its_share(seed: int) -> None:
    """A burst of the lag at first, equal shares in the long run."""
    tenants = {
        "talk": TenantShare(),
        "work": TenantShare(service_class=ServiceClass.BATCH),
    }

    def difference(num_steps: int) -> tuple[float, float]:
        counters, _ = serve_waiting(tenants, quantum=1.0, num_steps=num_steps, draw=Random(seed))
        return counters["talk"] - counters["work"], counters["work"]

    burst, work_then = difference(num_steps=10)
    in_the_long_run, work_later = difference(num_steps=1500)

    assert work_then == 0.0
    assert burst > 0.0
    assert work_later > 10 * BATCH_LAG > 5 * in_the_long_run


class VtcAgainstModel(RuleBasedStateMachine):
    """Random histories, checked against counters worked out the plain way."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = {"a": 1.0, "b": 2.0, "c": 0.5, "d": 1.0}
        self.requests: list[TrackedRequest] = []
        self.charged = dict.fromkeys(self.weights, 0.0)  # lifts included
        self.lifted_to = dict.fromkeys(self.weights, 0.0)
        self.last_waited: str | None = None
        self.last_of_class: dict[str | None, str] = {}

    @initialize(head_start=st.sampled_from([0.0, HEAD_START]))
    def begin(self, head_start: float) -> None:
        self.head_start = head_start
        self.vtc = make_vtc(self.weights, quantum=20.0, batch_lag=BATCH_LAG, head_start=head_start)

    def expected(self) -> Mapping[str, float]:
        """Charges plus the open reservations, summed anew each time."""
        return {tenant: self.charged[tenant] + self.reserved(tenant) for tenant in self.weights}

    def reserved(self, tenant: str) -> float:
        left = [
            request.prompt_left
            for request in self.requests
            if request.tenant == tenant and request.has_started
        ]
        return SERVICE.input * sum(left) / self.weights[tenant]

    @rule(
        tenant=st.sampled_from("abcd"),
        prompt_tokens=st.integers(0, 1000),
        service_class=st.sampled_from([None, "batch"]),
    )
    def arrive(self, tenant: str, prompt_tokens: int, service_class: str | None) -> None:
        if tenant not in self.tenants_waiting(None, "batch"):
            missing = self.floor(service_class) - self.expected()[tenant]
            if missing > 0:
                self.charged[tenant] += missing
                self.lifted_to[tenant] = self.charged[tenant]
        request = make_request(tenant, prompt_tokens, service_class=service_class)
        self.vtc.arrive(request)
        self.requests.append(request)

    def tenants_waiting(self, *classes: str | None) -> set[str]:
        return {
            request.tenant
            for request in self.requests
            if not request.has_started and request.wishes.service_class in classes
        }

    def floor(self, service_class: str | None) -> float:
        counters = self.expected()
        last = self.last_of_class.get(service_class)
        live = {(each.tenant, each.wishes.service_class) for each in self.requests}
        alike = self.tenants_waiting(service_class)
        if not alike and (last, service_class) in live:
            assert last is not None
            return counters[last]
        floors = (counters[other] for other in alike or self.tenants_waiting(None, "batch"))
        at_last = counters[self.last_waited] if self.last_waited else 0.0
        return min(floors, default=at_last)

    def note_end_of_waiting(self, request: TrackedRequest) -> None:
        service_class = request.wishes.service_class
        if request.tenant not in self.tenants_waiting(service_class):
            self.last_waited = self.last_of_class[service_class] = request.tenant

    @precondition(lambda self: self.requests)
    @rule(data=st.data(), prompt=st.integers(0, 300), output=st.integers(0, 50))
    def run(self, data: st.DataObject, prompt: int, output: int) -> None:
        request = data.draw(st.sampled_from(self.requests))
        if not request.has_started:
            start(self.vtc, request)
            self.note_end_of_waiting(request)
        prompt = min(prompt, request.prompt_left)
        advance(self.vtc, request, prompt, output)
        self.charged[request.tenant] += SERVICE.units(prompt, output) / self.weights[request.tenant]

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def depart(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.requests))
        self.requests.remove(request)
        self.vtc.depart(request)
        if not request.has_started:
            self.note_end_of_waiting(request)

    @rule(tenant=st.sampled_from("abcd"), prompt=st.integers(-50, 50), output=st.integers(-50, 50))
    def settle(self, tenant: str, prompt: int, output: int) -> None:
        self.vtc.settle(tenant, Tokens(prompt, output))
        units = SERVICE.units(prompt, output) / self.weights[tenant]
        self.charged[tenant] = max(self.lifted_to[tenant], self.charged[tenant] + units)

    @invariant()
    def counters_are_the_models(self) -> None:
        counters = self.vtc.counters()
        for tenant, expected in self.expected().items():
            assert counters.get(tenant, 0.0) == pytest.approx(expected, abs=1e-6)

    @invariant()
    def ranks_follow_counters_and_classes(self) -> None:
        """Whoever is more than a quantum behind the other, its lag included, goes first.

        Unless the other has a head start and is ahead by no more.
        """
        self.vtc.rerank(now_s=0.0, num_steps=0)
        ranks = self.vtc.priorities(self.requests)
        counters = self.expected()
        places = [
            counters[request.tenant] + (BATCH_LAG if request.wishes.service_class else 0.0)
            for request in self.requests
        ]
        for (rank, place), (other_rank, other_place) in permutations(
            zip(ranks, places, strict=True), 2
        ):
            if place + 20.0 + self.head_start + 1e-6 < other_place:
                assert rank < other_rank

    @invariant()
    def nobody_has_credit(self) -> None:
        counters = self.vtc.counters()
        assert all(counters.get(tenant, 0.0) >= self.lifted_to[tenant] for tenant in self.weights)


TestVtcAgainstModel = VtcAgainstModel.TestCase
TestVtcAgainstModel.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
