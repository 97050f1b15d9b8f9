"""Requests, and an engine that does what a policy says, for the tests of policies."""

from collections import defaultdict
from collections.abc import Sequence
from itertools import count

from app.settings import FairnessSettings
from scheduler.admission import Wishes
from scheduler.ledger import Tokens
from scheduler.policies.catalogue import policy_factory
from scheduler.policies.policy import Policy
from scheduler.service import ServiceWeights
from scheduler.shares import TenantShare, TenantShares
from scheduler.tracking import TrackedRequest

SERVICE = ServiceWeights(input=1.0, output=2.0)
_NUMBERS = count()


def make_policy(settings: FairnessSettings, **shares: TenantShare) -> Policy:
    """The policy that these settings choose, with these tenants."""
    tenants = TenantShares()
    tenants.replace(shares)
    return policy_factory(settings.policy, settings.policy_options())(SERVICE, tenants)


def make_request(
    tenant: str = "acme",
    *,
    prompt_tokens: int = 100,
    max_output_tokens: int | None = None,
    conversation: str | None = None,
    admitted_s: float = 0.0,
    wishes: Wishes | None = None,
) -> TrackedRequest:
    return TrackedRequest(
        request_id=f"r{next(_NUMBERS)}",
        tenant=tenant,
        conversation=conversation,
        engine_id="e",
        arrival_s=0.0,
        prompt_tokens=prompt_tokens,
        max_output_tokens=max_output_tokens,
        admitted_s=admitted_s,
        wishes=wishes or Wishes(),
    )


def advance(policy: Policy, request: TrackedRequest, prompt: int = 0, output: int = 0) -> None:
    """Let a request run and move by so many tokens."""
    request.is_running = True
    if not request.has_started:
        policy.start(request)
        request.has_started = True
    request.prompt_done += prompt
    request.output_done += output
    policy.progress(request, Tokens(prompt, output))


def places(priorities: Sequence[int]) -> list[int]:
    """Of each of these priorities, how many others come before it: equals have one place."""
    in_order = sorted(set(priorities))
    return [in_order.index(priority) for priority in priorities]


class StandInEngine:
    """Runs the most urgent ``seats`` requests in each step, equals in turn of arrival.

    A step takes ``step_s``, computes a whole prompt or one token of each, and is followed by a
    ranking. ``received`` is the service by tenant; ``first_token_s`` tells of each request that
    has put one out; a request leaves when its output is complete.
    """

    def __init__(self, policy: Policy, *, seats: int = 1, step_s: float = 0.1) -> None:
        self.policy = policy
        self.live: list[TrackedRequest] = []
        self.received: defaultdict[str, float] = defaultdict(float)
        self.first_token_s: dict[str, float] = {}
        self.now_s = 0.0
        self._seats, self._step_s = seats, step_s
        self._num_steps = 0

    def add(self, request: TrackedRequest) -> TrackedRequest:
        request.admitted_s = self.now_s
        self.live.append(request)
        self.policy.arrive(request)
        return request

    def step(self) -> None:
        urgency = dict(
            zip(
                (request.request_id for request in self.live),
                self.policy.priorities(self.live),
                strict=True,
            )
        )
        running = sorted(self.live, key=lambda request: urgency[request.request_id])[: self._seats]
        self.now_s += self._step_s
        self._num_steps += 1
        for request in self.live:
            request.is_running = False
        for request in running:
            self._run(request)
        self.policy.rerank(self.now_s, self._num_steps)

    def _run(self, request: TrackedRequest) -> None:
        prompt = request.prompt_left
        output = 0 if prompt else 1
        advance(self.policy, request, prompt, output)
        self.received[request.tenant] += SERVICE.units(prompt, output)
        if output:
            self.first_token_s.setdefault(request.request_id, self.now_s)
        if request.output_done == request.max_output_tokens:
            self.live.remove(request)
            self.policy.depart(request)
