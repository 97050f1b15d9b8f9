"""The Router's brain: who runs next and where, for all engines together.

Ties the parts to each other and owns the order in which they learn of things; each part says
for itself what it owns: live requests (tracking), who received how much (ledger), urgency
(policies), where a request goes (placement). Knows no processes and no messages: the Router
calls these methods from one thread, clock and randomness are passed in.

All of it is soft state. Reports are cumulative, so a lost or repeated one does no harm.
Requests that nobody announced are adopted from the reports of the engine that runs them;
requests that an engine no longer has are dropped at its next full report. Without a
checkpoint a new fleet takes the service received from the engines' full reports, while its
policy starts level: service alone, without the lifts that went with it, would owe whoever
came last all that others had received before.
"""

from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import dataclass
from random import Random

import msgspec

from scheduler.admission import AdmitRequest, EngineCapacity, Placement
from scheduler.clock import SteadyClock
from scheduler.engines import JoinedEngine
from scheduler.errors import NoEngineError, NotFreshError, UnknownEngineError
from scheduler.ledger import LedgerCheckpoint, ServiceLedger, Tokens
from scheduler.placement import ConversationMemory, OutputLengths, choose_engine
from scheduler.policies.policy import PolicyFactory
from scheduler.reports import EngineProgress, FinishedRequest, LiveRequest
from scheduler.service import ServiceWeights
from scheduler.shares import TenantShare, TenantShares
from scheduler.snapshot import FairnessView
from scheduler.tracking import RequestTable, TrackedRequest, adopted, announced

_COMPLETE = frozenset({"stop", "length"})  # finish reasons whose output is of natural length


@dataclass(frozen=True, slots=True)
class FleetLimits:
    """Rates, times and bounds of one fleet."""

    update_s: float = 0.1  # between two rankings, at least
    unseen_timeout_s: float = 30.0  # how long an engine may not report what was placed on it
    max_tenants: int = 10_000  # whose service is listed
    max_conversations: int = 100_000  # whose engine is remembered


class FleetCheckpoint(msgspec.Struct, array_like=True, frozen=True):
    """What a new fleet needs to go on where another one was."""

    policy: str
    policy_state: bytes
    ledger: LedgerCheckpoint
    requests: list[TrackedRequest]


class FleetScheduler:
    """Live requests, service and engines of the whole fleet, kept in step with each other.

    Every live request is on one engine, and known to the policy from arrival to departure. An
    engine that has not joined has no requests, but for those restored from a checkpoint:
    they wait for their engine to come back.
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
        self._random = random
        self._requests = RequestTable()
        self._ledger = ServiceLedger(max_tenants=limits.max_tenants)
        self._output_lengths = OutputLengths()
        self._conversations = ConversationMemory(max_conversations=limits.max_conversations)
        self._engines: dict[str, JoinedEngine] = {}
        self._next_ranking_s = 0.0
        self._steps_made = 0

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

    def join(self, engine_id: str, capacity: EngineCapacity) -> None:
        """Take an engine in, or begin anew with one that is back.

        Its requests are left alone: the full report that has to follow says which it still
        has. It may have restarted under its name, then its steps count from nought.
        """
        self._ledger.open(engine_id)
        self._engines[engine_id] = JoinedEngine(capacity)

    def leave(self, engine_id: str) -> list[str]:
        """Give an engine up; return the requests that are lost with it."""
        if self._engines.pop(engine_id, None) is not None:
            self._ledger.close(engine_id)
        lost = list(self._requests.on_engine(engine_id))
        for request in lost:
            self._forget(request)
        return [request.request_id for request in lost]

    def wants_full(self, engine_id: str) -> bool:
        """Whether the engine's next report has to be full: it has given no full one yet.

        Raises:
            UnknownEngineError: the engine has not joined.
        """
        return not self._engine(engine_id).has_reported_full

    def admit(self, request: AdmitRequest, avoid: frozenset[str] = frozenset()) -> Placement:
        """Choose an engine and a priority for a request, and expect it there.

        A request that is live already is moved: its gateway lost the engine or our answer.

        Raises:
            NoEngineError: all engines are to be avoided, or none has joined.
        """
        if self._engines.keys() <= avoid:
            raise NoEngineError(request.request_id, len(self._engines), len(avoid))
        moved = self._requests.get(request.request_id)
        if moved:
            self._requests.remove(moved)
        tracked = announced(request, self._choose_engine(request, avoid), self._now_s())
        self._take_in(tracked)
        if moved:  # only now: a tenant whose one request moves was never idle
            self._policy.depart(moved)
        self._await_sign(tracked)
        [tracked.priority] = self._policy.priorities([tracked])
        return Placement(tracked.engine_id, tracked.priority)

    def cancel(self, request_id: str) -> None:
        """Forget a request that never reached its engine. One that is not live is ignored."""
        request = self._requests.get(request_id)
        if request:
            self._forget(request)

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
        if engine.has_reported:
            self._steps_made += max(0, report.step - engine.latest.step)
        engine.note(report)
        for live in report.live:
            self._on_live(engine_id, live)
        for finished in report.finished:
            self._on_finished(engine_id, finished)
        if report.is_full:
            self._settle(engine_id, report)
        for request in self._gone(engine_id, report):
            self._forget(request)

    def priority_changes(self, engine_id: str) -> dict[str, int]:
        """New priorities for the engine's requests where they differ from what it was told.

        Ranks anew first if that is due.

        Raises:
            UnknownEngineError: the engine has not joined.
        """
        self._engine(engine_id)
        self._rank_if_due()
        changes = {}
        requests = self._requests.on_engine(engine_id)
        for request, priority in zip(requests, self._policy.priorities(requests), strict=True):
            if priority != request.priority and request.is_seen:
                changes[request.request_id] = request.priority = priority
        return changes

    def snapshot(self) -> dict[str, object]:
        """The fleet as plain values, for people."""
        return FairnessView(
            self._policy,
            self._service,
            self._shares,
            self._ledger,
            self._requests,
            self._engines,
        ).snapshot()

    def checkpoint(self) -> FleetCheckpoint:
        """All that a new fleet needs to go on from here; later changes do not touch it."""
        return FleetCheckpoint(
            policy=self._policy.name,
            policy_state=self._policy.save(),
            ledger=self._ledger.checkpoint(),
            requests=[copy(request) for request in self._requests.all()],
        )

    def restore(self, checkpoint: FleetCheckpoint) -> None:
        """Go on where another fleet was.

        Engines still have to join; their full reports settle what they did since. Requests of
        an engine that does not come back in time are dropped. Counters of another policy
        mean nothing to this one, which then starts level.

        Raises:
            NotFreshError: engines have joined or requests are live. Nothing is changed.
        """
        if self._engines or len(self._requests):
            raise NotFreshError(len(self._engines), len(self._requests))
        self._ledger.restore(checkpoint.ledger)
        for saved in checkpoint.requests:
            request = copy(saved)
            self._take_in(request)
            self._await_sign(request)
        if checkpoint.policy == self._policy.name:
            self._policy.load(checkpoint.policy_state)
        self._rank_if_due()

    @property
    def _num_steps(self) -> int:
        """Steps that an engine has made on average since the fleet began."""
        return self._steps_made // max(len(self._engines), 1)

    def _engine(self, engine_id: str) -> JoinedEngine:
        if engine_id not in self._engines:
            raise UnknownEngineError(engine_id)
        return self._engines[engine_id]

    def _choose_engine(self, request: AdmitRequest, avoid: frozenset[str]) -> str:
        seats = {
            engine_id: engine.capacity.max_num_seqs
            for engine_id, engine in self._engines.items()
            if engine_id not in avoid
        }
        warm = self._conversations.engine(request.tenant, request.conversation)
        load_units = self._load(request.prompt_tokens, 0, request.max_output_tokens)
        return choose_engine(
            {engine_id: self._requests.load(engine_id) / seats[engine_id] for engine_id in seats},
            warm=warm,
            request_load=load_units / seats[warm] if warm in seats else 0.0,
            random=self._random,
        )

    def _take_in(self, request: TrackedRequest) -> None:
        self._requests.add(request)
        self._weigh(request)
        self._conversations.remember(request.tenant, request.conversation, request.engine_id)
        self._policy.arrive(request)
        if request.has_started:
            self._policy.start(request)

    def _await_sign(self, request: TrackedRequest) -> None:
        until_s = self._now_s() + self._limits.unseen_timeout_s
        self._requests.await_sign(request, until_s)

    def _forget(self, request: TrackedRequest) -> None:
        self._requests.remove(request)
        self._policy.depart(request)

    def _on_live(self, engine_id: str, live: LiveRequest) -> None:
        request = self._requests.get(live.request_id)
        if request is None:
            self._take_in(adopted(live, engine_id, self._now_s()))
        elif request.engine_id == engine_id:
            self._requests.note_sign(request)
            self._move(request, live.prompt_done, live.output_done, is_running=live.is_running)
            request.priority = live.priority

    def _on_finished(self, engine_id: str, finished: FinishedRequest) -> None:
        request = self._requests.get(finished.request_id)
        if request is None or request.engine_id != engine_id:
            return
        self._move(request, finished.prompt_done, finished.output_done, is_running=False)
        if finished.reason in _COMPLETE:
            self._output_lengths.observe(finished.output_done)

    def _move(
        self, request: TrackedRequest, prompt_done: int, output_done: int, *, is_running: bool
    ) -> None:
        """Bring a request to these counts, as far as they are news, and charge the difference."""
        prompt = max(0, min(prompt_done, request.prompt_tokens) - request.prompt_done)
        output = max(0, output_done - request.output_done)
        has_moved = prompt > 0 or output > 0
        request.is_running = is_running
        if not request.has_started and (is_running or has_moved):
            self._policy.start(request)
            request.has_started = True
        if has_moved:
            tokens = Tokens(prompt, output)
            request.prompt_done += prompt
            request.output_done += output
            self._policy.progress(request, tokens)
            self._ledger.add(request.engine_id, request.tenant, tokens)
            self._weigh(request)

    def _weigh(self, request: TrackedRequest) -> None:
        load_units = self._load(request.prompt_left, request.output_done, request.max_output_tokens)
        self._requests.set_load(request, load_units)

    def _load(self, prompt_left: int, output_done: int, output_limit: int | None) -> float:
        """Service units that a request is expected to take from now on."""
        output_left = self._output_lengths.expected_left(output_done, output_limit)
        return self._service.units(prompt_left, output_left)

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
        self._policy.rerank(now_s, self._num_steps)
