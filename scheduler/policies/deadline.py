"""Deadlines: who has the least time left until its next token is due runs next.

Owns when a token is due and what becomes of a request that is late. Targets are set per class,
and a request may wish for others. The first token is due one TTFT after admission and each
further one a TBT later, so a request that is ahead of its reader makes room for one that is not;
slack is the time until then, less the time that computing the rest of the prompt is expected to
take. After the slack of FlowPrefill (arXiv:2602.16603) and the token deadlines of FairBatching
(arXiv:2510.14392).

Those who are late. Least slack first alone goes wrong as soon as not everybody can be on time:
whoever is latest goes first, so that all are served late and none in time. So a request whose
first token will be late, or whose stream has fallen back by more than ``GRACE_TOKENS`` tokens,
has its deadline renewed: once its class's TTFT later, then after twice that, four times and so on.
Meanwhile those who can still make it go first. A request that was late has its turn at the front
whenever a renewed deadline comes near, and there, among equals, goes before all that arrived after
it: so it gets its turn at the latest when its wait has doubled. Doubled, because turns that came at
even distances would in a lasting overload fill the front with those who are late anyway.
A token that comes too late after all starts the request's timeline anew: a stream that was
starved is owed no rush.

So wishing for the impossible brings nothing: such a request is late at once and stands with those
who are, by its class's targets. No shares are kept here: a tenant that sends more gets more.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil, log2

from scheduler.ledger import Tokens
from scheduler.policies.base import BasePolicy
from scheduler.policies.classes import class_of
from scheduler.policies.ranks import RankGroups
from scheduler.service import ServiceWeights
from scheduler.shares import ServiceClass, TenantShares
from scheduler.tracking import TrackedRequest

GRACE_TOKENS = 5
"""How many tokens a stream may be late before its deadline is renewed: engines outrun readers,
so it catches up, and reports tell of tokens some at a time."""
_KEPT = 0.9  # of what was measured of prefills before, at each ranking that adds to it


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
    renewal_s: float  # from a missed deadline to the first renewed one
    prompt_left: int
    computed_tokens: int = 0  # of its prompt, since the last ranking
    is_measured: bool = False  # it has been prefilling since the last ranking

    @property
    def grace_s(self) -> float:
        return GRACE_TOKENS * self.tbt_s if self.request.output_done else 0.0


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
        self._promises: dict[int, _Promise] = {}  # by the live request's identity
        self._groups = RankGroups[_Promise](slack_quantum_s)
        self._now_s = 0.0
        self._prefilling: dict[_Promise, None] = {}
        self._prefill_s = self._prefill_tokens = 0.0  # of whole intervals spent in a prefill
        self._prefill_token_s = 0.0

    def arrive(self, request: TrackedRequest) -> None:
        promise = self._promises[id(request)] = self._promised(request)
        self._groups.insert(promise, self._slack_s(promise))

    def progress(self, request: TrackedRequest, tokens: Tokens) -> None:
        promise = self._promises[id(request)]
        promise.prompt_left = request.prompt_left
        promise.computed_tokens += tokens.prompt
        if promise.prompt_left:
            self._prefilling[promise] = None
        if tokens.output:
            promise.due_s += promise.tbt_s * tokens.output
            if promise.due_s + promise.grace_s < self._now_s:
                promise.due_s = self._now_s + promise.tbt_s

    def depart(self, request: TrackedRequest) -> None:
        self._prefilling.pop(self._promises.pop(id(request)), None)

    def rerank(self, now_s: float, num_steps: int) -> None:
        self._measure_prefills(now_s - self._now_s)
        self._now_s = now_s
        slack_s = self._slack_s
        self._groups.update({promise: slack_s(promise) for promise in self._promises.values()})

    def priorities(self, requests: Iterable[TrackedRequest]) -> list[int]:
        ranks, promises = self._groups.ranks, self._promises
        return [ranks[promises[id(request)]] for request in requests]

    def _promised(self, request: TrackedRequest) -> _Promise:
        targets = self._targets[class_of(request, self._shares)]
        wishes = request.wishes
        ttft_s = targets.ttft_s if wishes.ttft_s is None else wishes.ttft_s
        tbt_s = targets.tbt_s if wishes.tbt_s is None else wishes.tbt_s
        due_s = request.admitted_s + ttft_s + tbt_s * request.output_done
        return _Promise(request, due_s, tbt_s, targets.ttft_s, request.prompt_left)

    def _slack_s(self, promise: _Promise) -> float:
        """Seconds until the request has to run to be in time, by its latest deadline."""
        slack_s = promise.due_s - self._now_s - promise.prompt_left * self._prefill_token_s
        if slack_s >= 0:
            return slack_s
        late_s = -slack_s - promise.grace_s
        return slack_s if late_s <= 0 else _next_renewal_s(late_s, promise.renewal_s) - late_s

    def _measure_prefills(self, interval_s: float) -> None:
        """Learn how fast prompts are computed, from requests that did nothing else meanwhile.

        Prompts that begin or end within the interval say nothing: how much of it they took is
        not known. Where all do, prompts take less than an interval and count as taking no time.
        """
        measured = [promise for promise in self._prefilling if _is_prefilling(promise)]
        whole = [promise for promise in measured if promise.is_measured]
        if whole:
            tokens = sum(promise.computed_tokens for promise in whole)
            self._prefill_s = _KEPT * self._prefill_s + interval_s * len(whole)
            self._prefill_tokens = _KEPT * self._prefill_tokens + tokens
        if self._prefill_tokens:
            self._prefill_token_s = self._prefill_s / self._prefill_tokens
        for promise in self._prefilling:
            promise.is_measured, promise.computed_tokens = _is_prefilling(promise), 0
        self._prefilling = dict.fromkeys(measured)


def _is_prefilling(promise: _Promise) -> bool:
    return promise.request.is_running and promise.prompt_left > 0


def _next_renewal_s(late_s: float, renewal_s: float) -> float:
    """How late a request is at its next renewed deadline: 1, 1 + 2, 1 + 2 + 4 ... renewals."""
    num_renewals = ceil(log2(late_s / renewal_s + 1))
    return renewal_s * (2**num_renewals - 1)
