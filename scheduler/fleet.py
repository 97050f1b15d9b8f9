"""The Router's brain: who runs next and where, for all engines together.

Ties the parts to each other and owns the order in which they learn of things; each part says
for itself what it owns: live requests (tracking), who received how much (ledger), urgency
(policies), who is past a limit of its own (quotas), who has waited too long (starvation), which
engine has room (seating), who waits for one (line). Knows no processes and no messages: the
Router calls these methods from one thread, clock and randomness are passed in.

All of it is soft state. Reports are cumulative, so a lost or repeated one does no harm.
Requests that nobody announced are adopted from the reports of the engine that runs them;
requests that an engine no longer has are dropped at its next full report. Without a
checkpoint a new fleet takes the service received from the engines' full reports, while its
policy starts level: service alone, without the lifts that went with it, would owe whoever
came last all that others had received before.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from copy import copy
from dataclasses import dataclass
from random import Random

import msgspec

from scheduler.admission import AdmitRequest, EngineCapacity, Placement
from scheduler.clock import SteadyClock
from scheduler.engines import JoinedEngine
from scheduler.errors import NoEngineError, NotFreshError, UnknownEngineError
from scheduler.ledger import LedgerCheckpoint, ServiceLedger, Tokens
from scheduler.line import WaitingLine
from scheduler.output_lengths import OutputLengths
from scheduler.policies.classes import class_of
from scheduler.policies.policy import Policy, PolicyFactory, keeps_turns
from scheduler.pressure import FleetPressure, PressureGauge
from scheduler.quotas import Quotas, Windows
from scheduler.reports import EngineProgress, FinishedRequest, LiveRequest
from scheduler.seating import Seating
from scheduler.service import ServiceWeights
from scheduler.shares import ServiceClass, TenantShare, TenantShares
from scheduler.snapshot import FairnessView
from scheduler.starvation import StarvationGuard
from scheduler.tool_turns import ToolTurns
from scheduler.tracking import RequestTable, TrackedRequest, adopted, announced
from scheduler.warmth import Warmth

STARVING = -1  # the priority of who has waited too long; a policy's begin at 0

_COMPLETE = frozenset({"stop", "length"})  # finish reasons whose output is of natural length


@dataclass(frozen=True, slots=True)
class FleetLimits:
    """Rates, times and bounds of one fleet."""

    update_s: float = 0.1  # between two rankings, at least
    unseen_timeout_s: float = 30.0  # how long an engine may not report what was placed on it
    max_tenants: int = 10_000  # whose service is listed
    max_conversations: int = 100_000  # whose engine is remembered
    max_prefixes: int = 200_000  # likewise
    max_wait_s: float = 60.0  # then a tenant's longest waiting request runs first
    max_tool_ttl_s: float = 0.0  # for which a turn's KV may be pinned while a tool runs


class FleetCheckpoint(msgspec.Struct, array_like=True, frozen=True):
    """What a new fleet needs to go on where another one was."""

    policy: str
    policy_state: bytes
    ledger: LedgerCheckpoint
    requests: list[TrackedRequest]
    output_lengths: list[int]
    quotas: Windows = {}


class FleetScheduler:
    """Live requests, service and engines of the whole fleet, kept in step with each other.

    Every live request is on one engine or in the line, and known to the policy from arrival to
    departure. An engine that has not joined has no requests, but for those restored from a
    checkpoint: they wait for their engine to come back.
    """

    def __init__(
        self,
        make_policy: PolicyFactory,
        *,
        clock: Callable[[], float],
        random: Random,
        service: ServiceWeights,
        limits: FleetLimits,
        default: TenantShare | None = None,
    ) -> None:
        self._service = service
        self._shares = TenantShares(default)
        self._policy = make_policy(service, self._shares)
        self._limits = limits
        self._now_s = SteadyClock(clock)
        self._quotas = Quotas(self._shares, clock=self._now_s, max_tenants=limits.max_tenants)
        self._requests = RequestTable()
        self._line = WaitingLine()
        self._seating = Seating(self._requests, random)
        self._starvation = StarvationGuard(limits.max_wait_s)
        self._called: dict[str, Placement] = {}
        self._stuck_at: int | None = None  # whose turn it was as no place was left
        self._ledger = ServiceLedger(max_tenants=limits.max_tenants)
        self._output_lengths = OutputLengths()
        self._warmth = Warmth(
            max_conversations=limits.max_conversations, max_prefixes=limits.max_prefixes
        )
        self._tool_turns = ToolTurns(max_ttl_s=limits.max_tool_ttl_s)
        self._engines: dict[str, JoinedEngine] = {}
        self._gauge = PressureGauge()
        self._next_ranking_s = 0.0
        self._num_steps = 0.0  # that an engine has made on average

    def set_tenants(
        self, shares: Mapping[str, TenantShare], *, default: TenantShare | None = None
    ) -> None:
        """Use these shares from now on; a tenant not among them has the default, old or new.

        Raises:
            InvalidWeightError: a weight is not a finite number above 0. The old shares stay.
            InvalidQuotaError: a limit is not above 0. The old shares stay.
        """
        self._shares.replace(shares, default=default)
        self._policy.reweigh()

    def go_by(
        self, make_policy: PolicyFactory, *, service: ServiceWeights, limits: FleetLimits
    ) -> None:
        """Use another policy, other prices and limits from now on; every request stays.

        A policy of the same name keeps its counters. Another one starts level, with the requests
        that are live: what the old one held against a tenant means nothing to it. Raises
        what making a policy raises; then everything is as before.
        """
        policy = self._successor(make_policy(service, self._shares))
        self._policy, self._service, self._limits = policy, service, limits
        self._starvation.set_longest_wait(limits.max_wait_s)
        self._tool_turns.set_longest_pin(limits.max_tool_ttl_s)
        self._seating.forget_priorities()
        for request in self._requests.all():
            self._weigh(request)
        self._next_ranking_s = 0.0
        self._rank_if_due()

    @property
    def keeps_turns(self) -> bool:
        """Whether requests of one tenant and class always run in the order of their arrival."""
        return keeps_turns(self._policy)

    def join(self, engine_id: str, capacity: EngineCapacity) -> None:
        """Take an engine in, or begin anew with one that is back.

        Its requests are left alone: the full report that has to follow says which it still
        has. It may have restarted under its name, then its steps count from nought.
        """
        self._ledger.open(engine_id)
        self._engines[engine_id] = JoinedEngine(capacity)
        self._seating.join(engine_id, capacity)
        self._stuck_at = None

    def drain(self, engine_id: str) -> None:
        """Place nothing more on an engine that is to go; its requests stay as they are.

        Where all engines drain, new requests wait in the line for another one.

        Raises:
            UnknownEngineError: the engine has not joined.
        """
        self._engine(engine_id).is_draining = True
        self._seating.leave(engine_id)

    def leave(self, engine_id: str) -> list[str]:
        """Give an engine up; return the requests that are lost with it."""
        if self._engines.pop(engine_id, None) is not None:
            self._ledger.close(engine_id)
            self._seating.leave(engine_id)
            self._tool_turns.forget_engine(engine_id)
        lost = list(self._requests.on_engine(engine_id))
        for request in lost:
            self._forget(request)
        return [request.request_id for request in lost]

    def admit(self, request: AdmitRequest, avoid: frozenset[str] = frozenset()) -> Placement | None:
        """An engine and a priority for a request, which is then expected there.

        None while there is no room for it: then it waits, and ``take_called`` gives its place once
        there is one. A request that is live already is moved, since its gateway lost the engine
        or our answer; one that waits goes on waiting. One that an engine tells of, which is not to
        be avoided, stays there: its gateway did not wait for this answer.

        Raises:
            NoEngineError: all engines are to be avoided, or none has joined.
            QuotaExceededError: its tenant is past a limit of its own.
        """
        if self._engines.keys() <= avoid:
            raise NoEngineError(request.request_id, len(self._engines), len(avoid))
        sent = self._sent_already(request.request_id, avoid)
        if sent is not None:
            return sent
        if not avoid:  # one that has lost its engine was let in before
            self._quotas.reserve(request)
        if request.request_id not in self._line:
            self._tool_turns.come_back(request.tenant, request.conversation, self._now_s())
            self._enter(announced(request, avoid, self._now_s()))
            self._call_up()
        return self._called.pop(request.request_id, None)

    def take_called(self) -> dict[str, Placement]:
        """Places of requests that had to wait for them, each told once."""
        self._call_up()
        called, self._called = self._called, {}
        return called

    def cancel(self, request_id: str) -> None:
        """Forget a request that never reached its engine. One that is not live is ignored."""
        self._called.pop(request_id, None)
        request = self._requests.get(request_id)
        if request:
            self._forget(request)

    def cancel_waiting(self, request_id: str) -> None:
        """Forget a request if it is in line. One that has a place, or is not live, is ignored."""
        if request_id in self._line:
            self.cancel(request_id)

    def on_report(self, engine_id: str, report: EngineProgress) -> None:
        """Take in what an engine has done since it last reported.

        A report older than one already taken in is ignored.

        Raises:
            UnknownEngineError: the engine has not joined. It should, and report in full.
        """
        engine = self._engine(engine_id)
        is_older = report.step < self._ledger.step(engine_id)
        if is_older and engine.has_reported:
            return
        if is_older:
            self._ledger.restart(engine_id)
        self._ledger.advance(engine_id, report.step)
        num_steps = engine.note(report)
        self._num_steps += num_steps / len(self._engines)
        for live in report.live:
            self._on_live(engine_id, live)
        for finished in report.finished:
            self._on_finished(engine_id, finished)
        if report.is_full:
            self._settle(engine_id, report)
        for request in self._gone(engine_id, report):
            self._forget(request)
        self._stuck_at = None
        if not engine.is_draining:
            num_ended = len(report.finished)
            self._seating.note_report(engine_id, num_ended=num_ended, num_steps=num_steps)

    def priority_changes(self, engine_id: str) -> dict[str, int]:
        """New priorities for the engine's requests where they differ from what it was told.

        Ranks anew first if that is due.

        Raises:
            UnknownEngineError: the engine has not joined.
        """
        engine = self._engine(engine_id)
        self._rank_if_due()
        changes = {}
        worst_running: int | None = None
        requests = self._requests.on_engine(engine_id)
        priorities = self._priorities(requests)
        for request, priority in zip(requests, priorities, strict=True):
            if priority != request.priority and request.is_seen:
                changes[request.request_id] = request.priority = priority
            if request.is_running and (worst_running is None or priority > worst_running):
                worst_running = priority
        if not engine.is_draining:
            self._seating.note_priorities(engine_id, priorities, worst_running=worst_running)
        return changes

    def tools_called(self, tenant: str, conversation: str, tools: Iterable[str]) -> None:
        """A conversation's turn has ended with calls of these tools: its next one may be near."""
        engine = self._engines.get(self._tool_turns.engine(tenant, conversation) or "")
        if engine is not None:
            self._tool_turns.call(tenant, conversation, tools, engine.memory, self._now_s())

    def take_pins(self, engine_id: str) -> dict[str, float] | None:
        """For how many seconds the engine is to pin the KV of which requests that have ended.

        Each is told once; 0 ends a pin. None where nothing is ever pinned.
        """
        return self._tool_turns.take_pins(engine_id)

    @property
    def num_live(self) -> int:
        """Requests on engines and in the line."""
        return len(self._requests)

    @property
    def num_in_line(self) -> int:
        return len(self._line)

    def take_pressure(self) -> FleetPressure:
        """How hard the engines are pressed, their switches counted since this was last taken.

        For batch work nobody waits: it counts for the seats that it takes alone.
        """
        now_s = self._now_s()
        waits_s = [
            now_s - request.admitted_s
            for request in self._requests.all()
            if not request.has_started
            and class_of(request, self._shares) is ServiceClass.INTERACTIVE
        ]
        return self._gauge.take(waits_s, self.num_live, self._engines, now_s)

    def snapshot(self) -> dict[str, object]:
        """The fleet as plain values, for people."""
        return FairnessView(
            self._policy,
            self._service,
            self._shares,
            self._ledger,
            self._quotas,
            self._requests,
            self._engines,
        ).snapshot()

    def checkpoint(self) -> FleetCheckpoint:
        """All that a new fleet needs to go on from here; later changes do not touch it."""
        return FleetCheckpoint(
            policy=self._policy.name,
            policy_state=self._policy.save(),
            ledger=self._ledger.checkpoint(),
            # Those in line are placed by their gateways once this fleet is gone.
            requests=[_saved(each) for each in self._requests.all() if each.engine_id is not None],
            output_lengths=self._output_lengths.recent,
            quotas=self._quotas.checkpoint(),
        )

    def restore(self, checkpoint: FleetCheckpoint) -> None:
        """Go on where another fleet was.

        Engines still have to join; their full reports settle what they did since. Requests of
        an engine that does not come back in time are dropped. Counters of another policy
        mean nothing to this one, which then starts level.

        Raises:
            NotFreshError: engines have joined or requests are live. Nothing is changed.
        """
        if self._engines or self.num_live:
            raise NotFreshError(len(self._engines), self.num_live)
        self._ledger.restore(checkpoint.ledger)
        for length in checkpoint.output_lengths:
            self._output_lengths.observe(length)
        self._quotas.restore(checkpoint.quotas)
        for saved in checkpoint.requests:
            request = copy(saved)
            request.admitted_s = self._now_s()  # the time that it was given is of another clock
            self._take_in(request)
            self._await_sign(request)
        if checkpoint.policy == self._policy.name:
            self._policy.load(checkpoint.policy_state)
        self._rank_if_due()

    def _engine(self, engine_id: str) -> JoinedEngine:
        if engine_id not in self._engines:
            raise UnknownEngineError(engine_id)
        return self._engines[engine_id]

    def _successor(self, policy: Policy) -> Policy:
        """``policy`` with the requests that are live, and the counters if they mean the same."""
        state = self._policy.save() if policy.name == self._policy.name else None
        requests = self._requests.all()
        notes = [request.note for request in requests]
        try:
            for request in requests:
                request.note = None
                policy.arrive(request)
                if request.has_started:
                    policy.start(request)
            if state is not None:
                policy.load(state)
        except Exception:
            for request, note in zip(requests, notes, strict=True):
                request.note = note
            raise
        return policy

    def _sent_already(self, request_id: str, avoid: frozenset[str]) -> Placement | None:
        """Where a request is by its engine's word; None if it is to go somewhere now."""
        request = self._requests.get(request_id)
        if request is None or not request.is_seen or request.engine_id in avoid:
            return None
        assert request.engine_id is not None
        return Placement(request.engine_id, request.priority)

    def _enter(self, request: TrackedRequest) -> None:
        """Let a request into the line; one of the same name that has a place gives it up."""
        moved = self._requests.get(request.request_id)
        if moved:
            self._charge_unreported(moved, request)
            self._take_off(moved)
        self._take_in(request)
        if moved:  # only now: a tenant whose one request moves was never idle
            self._depart(moved)
        self._weigh(request)
        [request.priority] = self._priorities([request])
        self._line.add(request, request.priority)
        if self._stuck_at is not None and request.priority < self._stuck_at:
            self._stuck_at = None

    def _charge_unreported(self, moved: TrackedRequest, request: TrackedRequest) -> None:
        """Charge what an engine did before it was lost and did not come to report."""
        if moved.engine_id in self._engines:
            done = request.prompt_done, request.output_done
            self._move(moved.engine_id, moved, *done, is_running=moved.is_running)

    def _call_up(self) -> None:
        """Give places to those in line, the most urgent first, until there is none for one.

        Nobody looks for a place again before there may be one: a report, a new order, a departure.
        One that may not go everywhere holds up nobody: there may be room where it may not go.
        """
        if self._stuck_at is not None:
            return
        for request, priority in self._line.in_order():
            warm = self._warmth.engine(request, request.prefixes)
            engine_id = self._seating.choose(request, priority, warm=warm, avoid=request.avoid)
            if engine_id is None and request.avoid:
                continue
            if engine_id is None:
                self._stuck_at = priority
                return
            request.priority = priority
            self._seat(request, engine_id)
            self._await_sign(request)
            self._called[request.request_id] = Placement(engine_id, priority)

    def _seat(self, request: TrackedRequest, engine_id: str) -> None:
        if request.engine_id is None:
            self._line.remove(request.request_id)
        else:
            self._seating.note_departure(request.engine_id)
        self._requests.place(request, engine_id)
        self._warmth.remember(request, request.prefixes)
        self._tool_turns.begin(request.tenant, request.conversation, request.request_id, engine_id)
        request.prefixes = []

    def _seat_if_told(self, request: TrackedRequest, engine_id: str) -> None:
        """An engine tells first of a request: its gateway took us for dead and sent it there.

        We have it in line, or expect it where our answer, which came too late, said. An engine
        that it was lost with is to be avoided; what that still says of it is old.
        """
        is_elsewhere = request.engine_id != engine_id and not request.is_seen
        if is_elsewhere and engine_id not in request.avoid:
            self._seat(request, engine_id)

    def _take_in(self, request: TrackedRequest) -> None:
        self._requests.add(request)
        self._quotas.take_in(request)
        self._policy.arrive(request)
        if request.has_started:
            self._policy.start(request)
        if not request.is_running:
            self._starvation.wait(request, self._now_s())

    def _await_sign(self, request: TrackedRequest) -> None:
        until_s = self._now_s() + self._limits.unseen_timeout_s
        self._requests.await_sign(request, until_s)

    def _forget(self, request: TrackedRequest) -> None:
        self._stuck_at = None
        self._take_off(request)
        self._quotas.release(request.request_id)
        self._depart(request)

    def _take_off(self, request: TrackedRequest) -> None:
        """Take a request from its engine, or out of the line. Policy and quotas still have it."""
        if request.engine_id is None:
            self._line.remove(request.request_id)
        else:
            self._seating.note_departure(request.engine_id)
        self._requests.remove(request)
        self._starvation.forget(request)

    def _depart(self, request: TrackedRequest) -> None:
        self._policy.depart(request)
        request.note = None  # it may lead back to the request, and no collector looks for that

    def _on_live(self, engine_id: str, live: LiveRequest) -> None:
        request = self._requests.get(live.request_id)
        if request is None:
            self._adopt(adopted(live, engine_id, self._now_s()))
            return
        self._seat_if_told(request, engine_id)
        if request.engine_id == engine_id:
            self._requests.note_sign(request)
            done = live.prompt_done, live.output_done
            self._move(engine_id, request, *done, is_running=live.is_running)
            if request.priority != live.priority:  # else let all equals share one number's object
                request.priority = live.priority

    def _on_finished(self, engine_id: str, finished: FinishedRequest) -> None:
        request = self._requests.get(finished.request_id)
        if request is not None:
            self._seat_if_told(request, engine_id)
        if request is None or request.engine_id != engine_id:
            return
        done = finished.prompt_done, finished.output_done
        self._move(engine_id, request, *done, is_running=False)
        if finished.reason in _COMPLETE:
            self._output_lengths.observe(finished.output_done)
            self._quotas.observe(request.tenant, finished.output_done)

    def _adopt(self, request: TrackedRequest) -> None:
        """Take in a request that an engine has and nobody announced."""
        self._take_in(request)
        self._weigh(request)
        self._warmth.remember(request)

    def _move(
        self,
        engine_id: str,
        request: TrackedRequest,
        prompt_done: int,
        output_done: int,
        *,
        is_running: bool,
    ) -> None:
        """Bring a request to these counts, as far as they are news, and charge the difference."""
        prompt = max(0, min(prompt_done, request.prompt_tokens) - request.prompt_done)
        output = max(0, output_done - request.output_done)
        has_moved = prompt > 0 or output > 0
        if is_running != request.is_running:
            self._note_running(request, is_running=is_running)
        if not request.has_started and (is_running or has_moved):
            self._policy.start(request)
            request.has_started = True
        if has_moved:
            tokens = Tokens(prompt, output)
            request.prompt_done += prompt
            request.output_done += output
            self._policy.progress(request, tokens)
            self._ledger.add(engine_id, request.tenant, tokens)
            self._quotas.charge(request.request_id, prompt + output)
            self._weigh(request)

    def _note_running(self, request: TrackedRequest, *, is_running: bool) -> None:
        request.is_running = is_running
        if is_running:
            self._starvation.run(request, self._now_s())
        else:
            self._starvation.wait(request, self._now_s())

    def _weigh(self, request: TrackedRequest) -> None:
        """Expect anew what the request will take of its engine from now on."""
        output_left = self._output_lengths.expected_left(
            request.output_done, request.max_output_tokens
        )
        load_units = self._service.units(request.prompt_left, output_left)
        self._requests.set_outlook(request, load_units=load_units, output_left=output_left)

    def _priorities(self, requests: Collection[TrackedRequest]) -> list[int]:
        """The policy's, but for those who have waited too long."""
        priorities = self._policy.priorities(requests)
        if not self._starvation.num_first:
            return priorities
        return [
            STARVING if request.request_id in self._starvation else priority
            for request, priority in zip(requests, priorities, strict=True)
        ]

    def _settle(self, engine_id: str, report: EngineProgress) -> None:
        for tenant, tokens in self._ledger.settle(engine_id, report.tenant_service).items():
            self._policy.settle(tenant, tokens)

    def _gone(self, engine_id: str, report: EngineProgress) -> list[TrackedRequest]:
        """Requests that have left the engine, by this report.

        A full report also tells by what it does not list; requests that are still on their
        way to the engine stay.
        """
        finished = {finished.request_id for finished in report.finished}
        present = {live.request_id for live in report.live}
        return [
            request
            for request in self._requests.on_engine(engine_id)
            if request.request_id in finished
            or (report.is_full and request.is_seen and request.request_id not in present)
        ]

    def _rank_if_due(self) -> None:
        now_s = self._now_s()
        if now_s < self._next_ranking_s:
            return
        self._next_ranking_s = now_s + self._limits.update_s
        for request in self._requests.overdue(now_s):
            self._forget(request)
        self._policy.rerank(now_s, int(self._num_steps))
        self._starvation.update(now_s)
        self._stuck_at = None
        self._line.reorder(self._priorities(self._line.requests))


def _saved(request: TrackedRequest) -> TrackedRequest:
    saved = copy(request)
    saved.note = None
    return saved
