"""Deadlines: who has the least time left until its next token is due runs next.

Owns when a token is due and what becomes of a request that is late. Targets are set per class,
and a request may wish for others. The first token is due one TTFT after admission and each
further one a TBT later, so a request that is ahead of its reader makes room for one that is not;
slack is the time until then, less what a first token is expected to take (``first_token``). After
the slack of FlowPrefill (arXiv:2602.16603) and the token deadlines of FairBatching
(arXiv:2510.14392).

Those who are late. Least slack first alone goes wrong as soon as not everybody can be on time:
whoever is latest goes first, so that all are served late and none in time. So a request that
waits and whose first token will be late, or that has begun and is late by more than
``GRACE_TOKENS`` tokens, stands as one of its class that has just come: behind those who can still
make it, before streams that are further ahead of their readers. There it would stay for ever in a
lasting overload. So one in ``LATE_PLACES`` of the places in which requests run, and at least one,
is for those who have waited longer than their class may: first come, first served. Each has its
turn once those before it have had theirs, on a tenth of what the fleet can do at worst. A token
that comes too late after all starts the request's timeline anew: a stream that was starved is
owed no rush.

So wishing for the impossible brings nothing: such a request is late at once, and then stands with
those who are, by its class and its arrival. No shares are kept here: a tenant that sends more
gets more.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import nsmallest
from math import inf

from scheduler.ledger import Tokens
from scheduler.policies.base import BasePolicy
from scheduler.policies.classes import class_of
from scheduler.policies.first_token import FirstTokenTimes
from scheduler.policies.ranks import RankGroups
from scheduler.service import ServiceWeights
from scheduler.shares import ServiceClass, TenantShares
from scheduler.tracking import TrackedRequest

GRACE_TOKENS = 5
"""How many tokens one that has begun may be late before its deadline is renewed: engines outrun
readers, so it catches up, and reports tell of tokens some at a time."""
LATE_PLACES = 10  # of so many places in which requests run, one is for those who are late


@dataclass(frozen=True, slots=True)
class LatencyTargets:
    """What is promised: time to first token, and between two tokens."""

    ttft_s: float
    tbt_s: float


@dataclass(slots=True, eq=False)
class _Promise:
    """One live request, and when its next token is due."""

    request: TrackedRequest
    due_s: float
    tbt_s: float
    late_slack_s: float  # what it is taken to have where it is late
    prompt_left: int
    has_answered: bool  # its first token is out
    rank: int = 0

    @property
    def grace_s(self) -> float:
        has_begun = self.has_answered or self.request.is_running
        return GRACE_TOKENS * self.tbt_s if has_begun else 0.0


class Deadline(BasePolicy):
    """Ranks requests by slack; ``slack_quantum_s`` is how much less makes a difference."""

    name = "deadline"

    def __init__(
        self,
        service: ServiceWeights,
        shares: TenantShares,
        *,
        targets: Mapping[ServiceClass, LatencyTargets],
        slack_quantum_s: float,
    ) -> None:
        super().__init__(service, shares)
        self._targets = targets
        self._promises: dict[_Promise, None] = {}  # of the live requests
        self._groups = RankGroups[_Promise](slack_quantum_s)
        self._first_tokens = FirstTokenTimes()
        self._now_s = 0.0

    def arrive(self, request: TrackedRequest) -> None:
        promise = request.note = self._promised(request)
        self._promises[promise] = None
        slack_s = self._slacks_s([promise])[promise]
        self._groups.insert(promise, promise.late_slack_s if slack_s < 0 else slack_s)

    def start(self, request: TrackedRequest) -> None:
        self._first_tokens.start(request)

    def progress(self, request: TrackedRequest, tokens: Tokens) -> None:
        self._first_tokens.progress(request, tokens)
        promise: _Promise = request.note
        promise.prompt_left = request.prompt_left
        if tokens.output:
            promise.has_answered = True
            promise.due_s += promise.tbt_s * tokens.output
            if promise.due_s + promise.grace_s < self._now_s:
                promise.due_s = self._now_s + promise.tbt_s

    def depart(self, request: TrackedRequest) -> None:
        del self._promises[request.note]
        self._first_tokens.forget(request)

    def rerank(self, now_s: float, num_steps: int) -> None:
        self._now_s = now_s
        self._first_tokens.rank(now_s)
        slacks_s = self._slacks_s(self._promises)
        negative = (promise for promise, slack_s in slacks_s.items() if slack_s < 0)
        late = [promise for promise in negative if slacks_s[promise] < -promise.grace_s]
        for promise in late:
            slacks_s[promise] = promise.late_slack_s
        for promise in self._in_turn(late):
            slacks_s[promise] = -inf
        self._groups.update(slacks_s)

    def priorities(self, requests: Iterable[TrackedRequest]) -> list[int]:
        return [request.note.rank for request in requests]

    def _promised(self, request: TrackedRequest) -> _Promise:
        targets = self._targets[class_of(request, self._shares)]
        wishes = request.wishes
        ttft_s = targets.ttft_s if wishes.ttft_s is None else wishes.ttft_s
        tbt_s = targets.tbt_s if wishes.tbt_s is None else wishes.tbt_s
        return _Promise(
            request,
            due_s=request.admitted_s + ttft_s + tbt_s * request.output_done,
            tbt_s=tbt_s,
            late_slack_s=targets.ttft_s,
            prompt_left=request.prompt_left,
            has_answered=request.output_done > 0,
        )

    def _slacks_s(self, promises: Iterable[_Promise]) -> dict[_Promise, float]:
        """Seconds until each has to run to be in time; below 0, how late it will be."""
        now_s, first_tokens = self._now_s, self._first_tokens
        prompt_token_s, besides_s = first_tokens.prompt_token_s, first_tokens.besides_s
        slacks_s = {}
        for promise in promises:
            slack_s = promise.due_s - now_s
            if not promise.has_answered:
                slack_s -= promise.prompt_left * prompt_token_s + besides_s
            slacks_s[promise] = slack_s
        return slacks_s

    def _in_turn(self, late: Sequence[_Promise]) -> Sequence[_Promise]:
        """Those of the late that have the places kept for them: whoever came first.

        Late is here by what the class promises: a wish for less makes nobody's turn come sooner.
        """
        overdue = [
            promise
            for promise in late
            if promise.request.admitted_s + promise.late_slack_s <= self._now_s
        ]
        if not overdue:
            return ()
        num_running = sum(promise.request.is_running for promise in self._promises)
        num_places = max(1, num_running // LATE_PLACES)
        return nsmallest(num_places, overdue, key=lambda promise: promise.request.admitted_s)
