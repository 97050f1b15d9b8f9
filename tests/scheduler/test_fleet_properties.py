"""The fleet over engines that obey it: shares and bounds under saturation, and random histories.

The engines here are stand-ins that run the most urgent requests first, displace at no cost and
count as the real ones do. Real ones are driven in the tests marked ``engine``.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import combinations, count
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from app.settings import FairnessSettings
from scheduler.admission import AdmitRequest, EngineCapacity, Wishes
from scheduler.errors import NoEngineError, UnknownEngineError
from scheduler.fleet import FleetCheckpoint, FleetLimits, FleetScheduler
from scheduler.ledger import Tokens
from scheduler.policies.catalogue import POLICIES, policy_factory
from scheduler.policies.policy import PolicyFactory
from scheduler.policies.vtc import VirtualTokenCounter
from scheduler.reports import EngineProgress, FinishedRequest, LiveRequest, SwitchCounts
from scheduler.service import ServiceWeights
from scheduler.shares import TenantShare

SERVICE = ServiceWeights(input=1.0, output=2.0)
LIMITS = FleetLimits(update_s=0.1, unseen_timeout_s=5.0)
SEATS = 4
STEP_PROMPT_TOKENS = 32
MOST_STEPS = 8  # between two reports
MOST_RUNS = SEATS * (MOST_STEPS + 1)  # of one engine in that time, however short they are
WISHES = [
    Wishes(),
    Wishes(priority=-1, service_class="batch", program="run"),
    Wishes(ttft_s=0.01, tbt_s=0.01),
]


@dataclass(slots=True)
class Work:
    """One request inside a stand-in engine."""

    ask: AdmitRequest
    priority: int
    order: int
    prompt_done: int = 0
    output_done: int = 0
    is_running: bool = False

    @property
    def is_prefilled(self) -> bool:
        return self.prompt_done == self.ask.prompt_tokens


class StandInEngine:
    """``SEATS`` most urgent requests take part in each step; equals in turn of arrival."""

    def __init__(self, engine_id: str) -> None:
        self.engine_id = engine_id
        self.works: dict[str, Work] = {}
        self.totals: defaultdict[str, Tokens] = defaultdict(Tokens)
        self._step = 0
        self._order = count()
        self._moved: set[str] = set()
        self._finished: list[FinishedRequest] = []

    def submit(self, ask: AdmitRequest, priority: int) -> None:
        work = self.works[ask.request_id] = Work(ask, priority, next(self._order))
        if ask.output_done:
            work.prompt_done, work.output_done = ask.prompt_tokens, ask.output_done
        self._moved.add(ask.request_id)

    def apply(self, changes: Mapping[str, int]) -> None:
        for request_id, priority in changes.items():
            if request_id in self.works:
                self.works[request_id].priority = priority

    def step(self) -> None:
        self._step += 1
        urgent = sorted(self.works.values(), key=lambda work: (work.priority, work.order))
        prompt_budget = STEP_PROMPT_TOKENS
        for place, work in enumerate(urgent):
            work.is_running = place < SEATS
            if work.is_running and work.is_prefilled:
                self._advance(work, output=1)
            elif work.is_running:
                chunk = min(prompt_budget, work.ask.prompt_tokens - work.prompt_done)
                prompt_budget -= chunk
                self._advance(work, prompt=chunk)

    def leave(self, request_id: str, reason: str) -> None:
        work = self.works.pop(request_id)
        self._moved.discard(request_id)
        self._finished.append(
            FinishedRequest(
                request_id=request_id,
                tenant=work.ask.tenant,
                prompt_tokens=work.ask.prompt_tokens,
                prompt_done=work.prompt_done,
                output_done=work.output_done,
                reason=reason,
            )
        )

    def report(self, *, is_full: bool) -> EngineProgress:
        told = [work for work in self.works.values() if is_full or self._has_moved(work)]
        progress = EngineProgress(
            step=self._step,
            is_full=is_full,
            live=[self._live(work) for work in told],
            finished=self._finished,
            num_running=sum(work.is_running for work in self.works.values()),
            num_waiting=sum(not work.is_running for work in self.works.values()),
            blocks_used=0,
            blocks_total=0,
            host_blocks_used=0,
            host_blocks_total=0,
            switches=SwitchCounts(),
            tenant_service=self._plain_totals() if is_full else {},
        )
        self._moved, self._finished = set(), []
        return progress

    def _has_moved(self, work: Work) -> bool:
        return work.ask.request_id in self._moved

    def _plain_totals(self) -> dict[str, tuple[int, int]]:
        return {tenant: (done.prompt, done.output) for tenant, done in self.totals.items()}

    def _advance(self, work: Work, *, prompt: int = 0, output: int = 0) -> None:
        work.prompt_done += prompt
        work.output_done += output
        tenant = work.ask.tenant
        self.totals[tenant] = self.totals[tenant].plus(Tokens(prompt, output))
        self._moved.add(work.ask.request_id)
        if work.output_done == work.ask.max_output_tokens:
            self.leave(work.ask.request_id, "length")

    @staticmethod
    def _live(work: Work) -> LiveRequest:
        return LiveRequest(
            request_id=work.ask.request_id,
            tenant=work.ask.tenant,
            conversation=work.ask.conversation,
            arrival_s=work.ask.arrival_s,
            prompt_tokens=work.ask.prompt_tokens,
            prompt_done=work.prompt_done,
            output_done=work.output_done,
            priority=work.priority,
            is_running=work.is_running,
        )


class Cluster:
    """Some engines and the fleet above them, joined by perfect messages."""

    def __init__(self, num_engines: int, *, quantum: float, weights: Mapping[str, float]) -> None:
        self.now_s = 0.0
        make_policy = partial(VirtualTokenCounter, quantum=quantum)
        self.fleet = make_fleet(lambda: self.now_s, make_policy)
        self.fleet.set_tenants({tenant: TenantShare(w) for tenant, w in weights.items()})
        self.engines = {f"e{n}": StandInEngine(f"e{n}") for n in range(num_engines)}
        self._in_line: dict[str, tuple[StandInEngine, AdmitRequest]] = {}
        self._names = count()
        for engine in self.engines.values():
            join(self.fleet, engine)

    def keep_waiting(self, engine: StandInEngine, tenants: Iterable[str], draw: Random) -> None:
        """Top each tenant's queue on an engine up, so that more wait than can run."""
        others = frozenset(self.engines) - {engine.engine_id}
        for tenant in tenants:
            asks = [work.ask for work in engine.works.values()]
            asks += [ask for its_engine, ask in self._in_line.values() if its_engine is engine]
            queued = sum(ask.tenant == tenant for ask in asks)
            for _ in range(MOST_RUNS - queued):
                ask = AdmitRequest(
                    request_id=f"r{next(self._names)}",
                    tenant=tenant,
                    conversation=None,
                    prompt_tokens=draw.randint(1, 80),
                    max_output_tokens=draw.randint(1, 40),
                    arrival_s=self.now_s,
                )
                placement = self.fleet.admit(ask, avoid=others)
                if placement is None:
                    self._in_line[ask.request_id] = engine, ask
                else:
                    engine.submit(ask, placement.priority)
        self._submit_called()

    def _submit_called(self) -> None:
        for request_id, placement in self.fleet.take_called().items():
            engine, ask = self._in_line.pop(request_id)
            engine.submit(ask, placement.priority)

    def run(self, num_steps: int) -> None:
        """Let every engine take some steps; then all report, and all learn the new ranks."""
        for engine in self.engines.values():
            for _ in range(num_steps):
                engine.step()
            self.fleet.on_report(engine.engine_id, engine.report(is_full=False))
        self.now_s += 2 * LIMITS.update_s
        for engine in self.engines.values():
            engine.apply(self.fleet.priority_changes(engine.engine_id))
        self._submit_called()

    def read(self, field: str) -> dict[str, float]:
        tenants: Any = self.fleet.snapshot()["tenants"]
        return {tenant: facts[field] for tenant, facts in tenants.items()}


def make_fleet(clock: Callable[[], float], make_policy: PolicyFactory) -> FleetScheduler:
    return FleetScheduler(
        make_policy,
        clock=clock,
        random=Random(0),
        service=SERVICE,
        limits=LIMITS,
    )


def join(fleet: FleetScheduler, engine: StandInEngine) -> None:
    fleet.join(engine.engine_id, EngineCapacity(SEATS, blocks_total=100, block_tokens=16))
    fleet.on_report(engine.engine_id, engine.report(is_full=True))


# --- under saturation -----------------------------------------------------------------------


@pytest.mark.parametrize("num_engines", [1, 3])
def test_always_backlogged_tenants_receive_service_by_weight(num_engines: int, seed: int) -> None:
    """Weights 1 and 2 come out at service 1:2 within 5 % over some thousands of tokens."""
    weights = {"one": 1.0, "two": 2.0}
    cluster = Cluster(num_engines, quantum=32.0, weights=weights)
    draw = Random(seed)
    while sum(cluster.read("service").values()) < 20_000:
        for engine in cluster.engines.values():
            cluster.keep_waiting(engine, weights, draw)
        cluster.run(num_steps=2)

    service = cluster.read("service")

    assert service["two"] / service["one"] == pytest.approx(2.0, rel=0.05)


def test_a_tenant_back_from_idle_is_neither_starved_nor_owed(seed: int) -> None:
    """From its return on it receives what each of the others does, no more and no less."""
    cluster = Cluster(1, quantum=32.0, weights={})
    [engine] = cluster.engines.values()
    draw = Random(seed)

    def serve(tenants: str, units: float) -> dict[str, float]:
        before = cluster.read("service")
        while sum(cluster.read("service").values()) < sum(before.values()) + units:
            cluster.keep_waiting(engine, tenants, draw)
            cluster.run(num_steps=2)
        return {t: s - before.get(t, 0.0) for t, s in cluster.read("service").items()}

    serve("abc", 2_000)
    for work in [work for work in engine.works.values() if work.ask.tenant == "c"]:
        engine.leave(work.ask.request_id, "abort")
    serve("ab", 10_000)
    received = serve("abc", 15_000)

    assert received["c"] == pytest.approx(5_000, rel=0.1)
    assert received["a"] == pytest.approx(received["b"], rel=0.1)


@settings(max_examples=25, deadline=None)
@given(
    weights=st.dictionaries(
        st.sampled_from("abcde"), st.sampled_from([0.5, 1.0, 2.0, 4.0]), min_size=2
    ),
    quantum=st.sampled_from([0.0, 16.0, 100.0, 500.0]),
    num_engines=st.integers(1, 3),
    num_steps=st.integers(1, MOST_STEPS),
    draw=st.randoms(use_true_random=False),
)
def test_counters_of_backlogged_tenants_stay_within_the_bound(
    weights: dict[str, float], quantum: float, num_engines: int, num_steps: int, draw: Random
) -> None:
    """Two counters never part by more than a quantum plus one interval's rise of a counter."""
    cluster = Cluster(num_engines, quantum=quantum, weights=weights)
    largest_rise = 0.0
    for _ in range(40):
        for engine in cluster.engines.values():
            cluster.keep_waiting(engine, weights, draw)
        before = cluster.read("counter")
        cluster.run(num_steps)
        counters = cluster.read("counter")
        rises = (counters[tenant] - before[tenant] for tenant in weights)
        largest_rise = max(largest_rise, *rises)

        assert max(counters.values()) - min(counters.values()) <= quantum + largest_rise + 1e-6


class Churn(Cluster):
    """A cluster whose tenants come and go, whose clients give up and whose engines die.

    Any engine may run any request. A prompt is computed in one step, and no request that begins
    ends before the next report: so what a seat is given in between is known beforehand.
    """

    MOST_ENGINES = 3
    LONGEST_PROMPT = STEP_PROMPT_TOKENS // SEATS
    DEEP = MOST_ENGINES * MOST_RUNS + SEATS  # requests that leave no engine without one

    def __init__(self, *, num_steps: int, quantum: float, weights: Mapping[str, float]) -> None:
        super().__init__(1, quantum=quantum, weights=weights)
        self._num_steps = num_steps
        self._waiting: dict[str, AdmitRequest] = {}
        self._lost: list[StandInEngine] = []

    def largest_rise(self, weight: float) -> float:
        """The most that a counter can rise between two reports: every seat begins a request."""
        seat = SERVICE.input * self.LONGEST_PROMPT + SERVICE.output * self._num_steps
        return self.MOST_ENGINES * SEATS * seat / weight

    def received(self, tenant: str) -> float:
        """By the engines' own count, of those that are gone as well."""
        done = (each.totals[tenant] for each in [*self.engines.values(), *self._lost])
        return sum(SERVICE.units(tokens.prompt, tokens.output) for tokens in done)

    def fill(self, tenant: str, draw: Random) -> None:
        for _ in range(self.DEEP - len(self._asks(tenant))):
            ask = AdmitRequest(
                request_id=f"r{next(self._names)}",
                tenant=tenant,
                conversation=None,
                prompt_tokens=draw.randint(1, self.LONGEST_PROMPT),
                max_output_tokens=self._num_steps + draw.randint(1, 12),
                arrival_s=self.now_s,
            )
            self._send(ask)

    def give_up(self, tenant: str, share: float, draw: Random) -> None:
        """Clients of so many of a tenant's requests leave."""
        for ask in self._asks(tenant):
            if draw.random() >= share:
                continue
            if self._waiting.pop(ask.request_id, None):
                self.fleet.cancel(ask.request_id)
            for engine in self.engines.values():
                if ask.request_id in engine.works:
                    engine.leave(ask.request_id, "abort")

    def start_engine(self) -> None:
        engine = StandInEngine(f"e{next(self._names)}")
        self.engines[engine.engine_id] = engine
        join(self.fleet, engine)
        self._submit_called()

    def lose_engine(self, draw: Random) -> None:
        """What it had goes on elsewhere."""
        lost = self.engines.pop(draw.choice(sorted(self.engines)))
        self._lost.append(lost)
        self.fleet.leave(lost.engine_id)
        for work in lost.works.values():
            self._send(msgspec.structs.replace(work.ask, output_done=work.output_done))

    def _asks(self, tenant: str) -> list[AdmitRequest]:
        sent = (work.ask for engine in self.engines.values() for work in engine.works.values())
        return [ask for ask in (*self._waiting.values(), *sent) if ask.tenant == tenant]

    def _send(self, ask: AdmitRequest) -> None:
        placement = self.fleet.admit(ask)
        if placement is None:
            self._waiting[ask.request_id] = ask
        else:
            self.engines[placement.engine_id].submit(ask, placement.priority)

    def _submit_called(self) -> None:
        for request_id, placement in self.fleet.take_called().items():
            ask = self._waiting.pop(request_id)
            self.engines[placement.engine_id].submit(ask, placement.priority)


@settings(max_examples=25, deadline=None)
@given(
    weights=st.dictionaries(st.sampled_from("abcd"), st.sampled_from([0.5, 1.0, 2.0]), min_size=2),
    quantum=st.sampled_from([0.0, 16.0, 100.0]),
    num_steps=st.integers(1, 4),
    choices=st.integers(0, 2**32),
)
def test_whoever_comes_or_goes_backlogged_tenants_receive_alike(
    weights: dict[str, float], quantum: float, num_steps: int, choices: int
) -> None:
    """Over any interval in which two wait, the service of both differs by less than the bound.

    Others, and they themselves before, return from idle, abort, and lose engines.
    """
    draw = Random(choices)
    cluster = Churn(num_steps=num_steps, quantum=quantum, weights=weights)
    backlogged: set[str] = set()
    leads: defaultdict[tuple[str, str], list[float]] = defaultdict(list)  # since both wait
    for _ in range(100):
        if draw.random() < 0.1 and len(cluster.engines) < Churn.MOST_ENGINES:
            cluster.start_engine()
        if draw.random() < 0.1 and len(cluster.engines) > 1:
            cluster.lose_engine(draw)
        for tenant in sorted(weights):
            if draw.random() < 0.05:
                backlogged ^= {tenant}
                cluster.give_up(tenant, 1.0, draw)
            if tenant in backlogged:
                cluster.give_up(tenant, 0.05, draw)
                cluster.fill(tenant, draw)
        received = {tenant: cluster.received(tenant) / weights[tenant] for tenant in weights}
        for one, other in combinations(sorted(weights), 2):
            if {one, other} <= backlogged:
                leads[one, other].append(received[one] - received[other])
                gap = max(leads[one, other]) - min(leads[one, other])
                rise = cluster.largest_rise(min(weights[one], weights[other]))
                assert gap <= 2 * (quantum + rise)
            else:
                leads[one, other].clear()
        cluster.run(num_steps)


def test_tenants_served_alike_are_rarely_told_of_new_ranks(seed: int) -> None:
    """With a quantum, equal tenants run side by side: far fewer changes than without."""

    def num_changes(quantum: float) -> int:
        cluster = Cluster(1, quantum=quantum, weights={})
        [engine] = cluster.engines.values()
        draw = Random(seed)
        changes = 0
        for _ in range(300):
            cluster.keep_waiting(engine, "ab", draw)
            before = {work.ask.request_id: work.priority for work in engine.works.values()}
            cluster.run(num_steps=2)
            changes += sum(
                work.priority != before[name]
                for name, work in engine.works.items()
                if name in before
            )
        return changes

    assert num_changes(quantum=400.0) < num_changes(quantum=0.0) / 4


# --- random histories -----------------------------------------------------------------------


class RandomHistory(RuleBasedStateMachine):
    """Engines, gateways and routers that come, go, and lose each other's messages."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.policy = "vtc"
        self.fleet = self.new_router()
        self.engines: dict[str, StandInEngine] = {}
        self.names = count()
        self.in_line: dict[str, AdmitRequest] = {}
        self.checkpoint: FleetCheckpoint | None = None

    def new_router(self) -> FleetScheduler:
        options = FairnessSettings(quantum=50.0, batch_lag=100.0).policy_options()
        return make_fleet(lambda: self.now_s, policy_factory(self.policy, options))

    @initialize(policy=st.sampled_from(sorted(POLICIES)))
    def policy_is_chosen(self, policy: str) -> None:
        self.policy = policy
        self.fleet = self.new_router()

    def deliver(self, engine: StandInEngine, report: EngineProgress) -> None:
        """As an engine replica does: join when the router does not know us, obey the answer."""
        try:
            self.fleet.on_report(engine.engine_id, report)
        except UnknownEngineError:
            join(self.fleet, engine)
        engine.apply(self.fleet.priority_changes(engine.engine_id))
        self.send_called()

    def send_called(self) -> None:
        """As gateways do with places told: send the request, or give the place back."""
        for request_id, placement in self.fleet.take_called().items():
            ask = self.in_line.pop(request_id, None)
            if ask is not None and placement.engine_id in self.engines:
                self.engines[placement.engine_id].submit(ask, placement.priority)
            else:
                self.fleet.cancel(request_id)

    def gateways_go_alone(self) -> None:
        """As they do with what waits in line when their router has gone."""
        for ask in self.in_line.values():
            for engine in list(self.engines.values())[:1]:
                engine.submit(ask, priority=0)
        self.in_line.clear()

    def draw_engine(self, data: st.DataObject) -> StandInEngine:
        return self.engines[data.draw(st.sampled_from(sorted(self.engines)), label="engine")]

    def new_ask(self, data: st.DataObject) -> AdmitRequest:
        return AdmitRequest(
            request_id=f"r{next(self.names)}",
            tenant=data.draw(st.sampled_from("abc"), label="tenant"),
            conversation=data.draw(st.sampled_from([None, "c1", "c2"]), label="conversation"),
            prompt_tokens=data.draw(st.integers(1, 100), label="prompt"),
            max_output_tokens=data.draw(st.integers(1, 20), label="output"),
            arrival_s=self.now_s,
            wishes=data.draw(st.sampled_from(WISHES), label="wishes"),
        )

    @precondition(lambda self: len(self.engines) < 3)
    @rule()
    def engine_starts(self) -> None:
        engine = StandInEngine(f"e{next(self.names)}")
        self.engines[engine.engine_id] = engine
        join(self.fleet, engine)

    @precondition(lambda self: self.engines)
    @rule(data=st.data())
    def engine_dies(self, data: st.DataObject) -> None:
        engine = self.draw_engine(data)
        del self.engines[engine.engine_id]
        self.fleet.leave(engine.engine_id)

    @precondition(lambda self: len(self.engines) > 1)
    @rule(data=st.data(), is_heard_first=st.booleans())
    def requests_of_a_dead_engine_go_on(self, data: st.DataObject, is_heard_first: bool) -> None:  # noqa: FBT001
        """By their gateways, before or after the router has heard of the engine's end."""
        dead = self.draw_engine(data)
        del self.engines[dead.engine_id]
        if is_heard_first:
            self.fleet.leave(dead.engine_id)
        for work in dead.works.values():
            ask = msgspec.structs.replace(work.ask, output_done=work.output_done)
            try:
                placement = self.fleet.admit(ask, frozenset({dead.engine_id}))
            except NoEngineError:
                self.draw_engine(data).submit(ask, priority=0)
                continue
            if placement is None:
                self.in_line[ask.request_id] = ask
            elif placement.engine_id in self.engines:
                self.engines[placement.engine_id].submit(ask, placement.priority)
        self.fleet.leave(dead.engine_id)

    @precondition(lambda self: self.engines)
    @rule(data=st.data())
    def engine_is_given_up_too_early(self, data: st.DataObject) -> None:
        self.fleet.leave(self.draw_engine(data).engine_id)

    @precondition(lambda self: any(joined(self.fleet)))
    @rule(data=st.data(), fate=st.sampled_from(["sent", "sent", "sent", "cancelled", "lost"]))
    def gateway_asks(self, data: st.DataObject, fate: str) -> None:
        ask = self.new_ask(data)
        placement = self.fleet.admit(ask)
        if fate == "cancelled":
            self.fleet.cancel(ask.request_id)
        elif fate == "sent" and placement is None:
            self.in_line[ask.request_id] = ask
        elif fate == "sent" and placement and placement.engine_id in self.engines:
            self.engines[placement.engine_id].submit(ask, placement.priority)

    @precondition(lambda self: self.in_line and self.engines)
    @rule(data=st.data())
    def gateway_takes_the_router_for_dead(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.in_line)), label="request")
        self.draw_engine(data).submit(self.in_line.pop(request_id), priority=0)

    @precondition(lambda self: self.engines.keys() & joined(self.fleet))
    @rule(data=st.data(), is_told_first=st.booleans(), num_steps=st.integers(1, 10))
    def gateway_does_not_wait_for_its_answer(
        self,
        data: st.DataObject,
        is_told_first: bool,  # noqa: FBT001
        num_steps: int,
    ) -> None:
        """It has sent its request elsewhere; its question is read before or after that is told.

        Whichever it is, the engine's next word puts place, priority and charges right.
        """
        reachable = sorted(self.engines.keys() & joined(self.fleet))
        engine = self.engines[data.draw(st.sampled_from(reachable), label="engine")]
        ask = msgspec.structs.replace(self.new_ask(data), tenant=f"late{next(self.names)}")
        engine.submit(ask, priority=0)
        if is_told_first:
            self.deliver(engine, engine.report(is_full=False))
            engine.step()
            self.deliver(engine, engine.report(is_full=False))
        self.fleet.admit(ask)
        for _ in range(num_steps):
            engine.step()
        self.deliver(engine, engine.report(is_full=False))
        self.assert_known(engine, ask)

    def assert_known(self, engine: StandInEngine, ask: AdmitRequest) -> None:
        """The only request of its tenant is where it runs, as far as it has come, and charged."""
        known = self.fleet.checkpoint()
        places = {each.request_id: each for each in known.requests}
        place = places.get(ask.request_id)
        work = engine.works.get(ask.request_id)
        assert (place is None) == (work is None)
        if place is not None and work is not None:
            assert place.engine_id == engine.engine_id
            assert (place.prompt_done, place.output_done) == (work.prompt_done, work.output_done)
            assert place.priority == work.priority
        counted = known.ledger.engines[engine.engine_id].counted
        assert counted.get(ask.tenant, Tokens()) == engine.totals[ask.tenant]

    @precondition(lambda self: len(list(joined(self.fleet))) > 1)
    @rule(data=st.data())
    def gateway_loses_its_line_to_an_engine(self, data: st.DataObject) -> None:
        """Its request goes on elsewhere; what the engine still says of it moves nothing."""
        busy = [each for each in self.engines.values() if each.works]
        if not busy:
            return
        out_of_reach = data.draw(st.sampled_from(busy), label="engine")
        work = out_of_reach.works[data.draw(st.sampled_from(sorted(out_of_reach.works)))]
        ask = msgspec.structs.replace(work.ask, output_done=work.output_done)
        placement = self.fleet.admit(ask, frozenset({out_of_reach.engine_id}))
        self.deliver(out_of_reach, out_of_reach.report(is_full=False))
        out_of_reach.leave(ask.request_id, "abort")
        self.deliver(out_of_reach, out_of_reach.report(is_full=False))
        if placement is None:  # its client has no patience
            self.fleet.cancel(ask.request_id)
            return
        live: Any = {each.request_id: each for each in self.fleet.checkpoint().requests}
        assert live[ask.request_id].engine_id == placement.engine_id
        if placement.engine_id in self.engines:
            self.engines[placement.engine_id].submit(ask, placement.priority)

    @precondition(lambda self: self.engines)
    @rule(data=st.data())
    def gateway_places_by_itself(self, data: st.DataObject) -> None:
        self.draw_engine(data).submit(self.new_ask(data), priority=0)

    @precondition(lambda self: self.engines)
    @rule(data=st.data(), num_steps=st.integers(1, 10))
    def engine_works(self, data: st.DataObject, num_steps: int) -> None:
        engine = self.draw_engine(data)
        for _ in range(num_steps):
            engine.step()

    @precondition(lambda self: any(engine.works for engine in self.engines.values()))
    @rule(data=st.data())
    def client_disconnects(self, data: st.DataObject) -> None:
        busy = [engine for engine in self.engines.values() if engine.works]
        engine = data.draw(st.sampled_from(busy), label="engine")
        engine.leave(data.draw(st.sampled_from(sorted(engine.works))), "abort")

    @precondition(lambda self: self.engines)
    @rule(
        data=st.data(),
        is_full=st.booleans(),
        fate=st.sampled_from(["delivered", "delivered", "lost", "repeated"]),
    )
    def engine_reports(self, data: st.DataObject, is_full: bool, fate: str) -> None:  # noqa: FBT001
        engine = self.draw_engine(data)
        report = engine.report(is_full=is_full)
        if fate != "lost":
            self.deliver(engine, report)
        if fate == "repeated":
            self.deliver(engine, report)

    @rule(step_s=st.sampled_from([0.05, 0.2, 6.0, -3600.0, 3600.0]))
    def time_passes(self, step_s: float) -> None:
        self.now_s += step_s

    @rule(weight=st.sampled_from([0.5, 1.0, 3.0]), tenant=st.sampled_from("abc"))
    def weights_change(self, weight: float, tenant: str) -> None:
        self.fleet.set_tenants({tenant: TenantShare(weight)})

    @rule()
    def checkpoint_is_taken(self) -> None:
        self.checkpoint = self.fleet.checkpoint()

    @rule()
    def router_restarts(self) -> None:
        self.fleet = self.new_router()
        self.gateways_go_alone()
        if self.checkpoint is not None:
            self.fleet.restore(self.checkpoint)

    @rule()
    def router_restarts_without_memory(self) -> None:
        self.fleet = self.new_router()
        self.gateways_go_alone()
        self.checkpoint = None

    @rule()
    def all_is_told(self) -> None:
        """Once all engines have reported in full, the fleet knows exactly what is true."""
        self.now_s += LIMITS.unseen_timeout_s + 1
        for engine in self.engines.values():
            self.deliver(engine, engine.report(is_full=True))
        self.now_s += LIMITS.unseen_timeout_s + 1
        for engine in self.engines.values():
            self.deliver(engine, engine.report(is_full=True))
        known = self.fleet.checkpoint()
        if self.engines:
            assert {request.request_id: request.engine_id for request in known.requests} == {
                request_id: engine.engine_id
                for engine in self.engines.values()
                for request_id in engine.works
            }
        for engine in self.engines.values():
            assert known.ledger.engines[engine.engine_id].counted == engine.totals

    @invariant()
    def service_is_conserved(self) -> None:
        """Tenants together have received what was counted of all engines together."""
        ledger = self.fleet.checkpoint().ledger
        received = Tokens()
        for tokens in ledger.tenants.values():
            received = received.plus(tokens)
        for account in ledger.engines.values():
            for tokens in account.counted.values():
                received = received.minus(tokens)
        assert received == Tokens()

    @invariant()
    def every_request_is_on_one_engine(self) -> None:
        requests = self.fleet.checkpoint().requests
        assert len({request.request_id for request in requests}) == len(requests)
        snapshot: Any = self.fleet.snapshot()
        for engine_id, facts in snapshot["engines"].items():
            assert facts["live"] == sum(request.engine_id == engine_id for request in requests)

    @invariant()
    def nobody_waits_for_an_idle_engine(self) -> None:
        """Whoever is in line, no engine of the fleet is without requests."""
        self.send_called()
        snapshot: Any = self.fleet.snapshot()
        is_any_idle = any(facts["live"] == 0 for facts in snapshot["engines"].values())
        assert not (is_any_idle and snapshot["totals"]["in_line"])

    @invariant()
    def nobody_has_credit(self) -> None:
        tenants: Any = self.fleet.snapshot()["tenants"]
        assert all(facts["counter"] >= -1e-6 for facts in tenants.values())


def joined(fleet: FleetScheduler) -> Iterable[str]:
    engines: Any = fleet.snapshot()["engines"]
    return list(engines)


TestRandomHistory = RandomHistory.TestCase
TestRandomHistory.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)
