"""Fair queuing by user: requests run in the order in which they would finish if all shared.

After user-weighted fair queuing (arXiv:2510.15485), with tenants for users and service for time.
A request gets a finish when it arrives, on a timeline that all tenants share:

    finish = max(V, finish of the tenant's request before) + predicted service / weight

and the least finish runs first. A tenant's requests stand one behind the other on its own part
of the timeline, whichever conversations they belong to, so more conversations, or more requests
at once, bring a tenant nothing: each further one only finishes later. (The paper's jobs are
conversations. Here each turn of one is a job: what the later ones take is known only when they
come, and by then the one before has ended.)

V, where the timeline stands, rises by the service processed over the weights of the tenants with
live requests: it is counted in what engines really do and needs no clock. A tenant that was idle
starts at V, so it is neither owed nor in debt for the time in which it asked for nothing.

Service is predicted from the tenant's past outputs. What a request takes beyond that is charged
as it happens, to it and to its tenant's next ones; what it leaves is given back to its tenant when
it ends. So a wrong prediction misplaces one request, and its tenant's share no further than what
is in flight.

The bound. A request that runs before another has a finish no more than ``quantum`` above its, so
whoever waits has to wait for no more than the fair share of everybody else up to its own finish,
the quantum for each other tenant, and what was underpredicted of what ran before.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from scheduler.ledger import Tokens
from scheduler.policies.base import BasePolicy
from scheduler.policies.ranks import RankGroups
from scheduler.service import ServiceWeights
from scheduler.shares import TenantShares
from scheduler.tracking import TrackedRequest

_FIRST_OUTPUT_TOKENS = 256.0  # expected of a tenant without a past
_OUTPUTS_REMEMBERED = 16  # the window of the moving mean


class _TimelineState(msgspec.Struct, array_like=True, frozen=True):
    """What outlives the process: V, and per tenant ``(finish, expected output tokens)``."""

    virtual: float
    tenants: dict[str, tuple[float, float]]


@dataclass(slots=True, eq=False)
class _User:
    """One tenant. ``finish`` is that of the last of its requests."""

    weight: float
    finish: float = 0.0
    output_tokens: float = _FIRST_OUTPUT_TOKENS  # expected of its next request
    num_live: int = 0


@dataclass(slots=True, eq=False)
class _Tag:
    """One live request on the timeline. ``charged`` is never below ``served``."""

    user: _User
    charged: float  # service units
    served: float = 0.0  # service units, since it arrived
    rank: int = 0


class FairUser(BasePolicy):
    """Ranks requests by finish. A tenant is active while it has live requests.

    ``V`` never falls, and no finish is given below it. Beyond ``max_idle_tenants`` those idle
    longest are forgotten: they come back at V, forgiven what they were ahead of it.
    """

    name = "fair-user"
    keeps_turns = True

    def __init__(
        self,
        service: ServiceWeights,
        shares: TenantShares,
        *,
        quantum: float,
        max_idle_tenants: int = 10_000,
    ) -> None:
        super().__init__(service, shares)
        self._max_idle_tenants = max_idle_tenants
        self._active: dict[str, _User] = {}
        self._idle: OrderedDict[str, _User] = OrderedDict()  # left longest ago first
        self._weight_active = 0.0
        self._virtual = 0.0
        self._finishes: dict[_Tag, float] = {}  # of the live requests
        self._groups = RankGroups[_Tag](quantum)

    def reweigh(self) -> None:
        """Price all further service by the new weights; finishes that were given stay."""
        for users in (self._active, self._idle):
            for tenant, user in users.items():
                user.weight = self._shares[tenant].weight
        self._weight_active = sum(user.weight for user in self._active.values())

    def arrive(self, request: TrackedRequest) -> None:
        user = self._activate(request.tenant)
        cost = self._predicted_units(request, user)
        user.finish = max(self._virtual, user.finish) + cost / user.weight
        tag = request.note = _Tag(user, charged=cost)
        self._finishes[tag] = user.finish
        self._groups.insert(tag, user.finish)

    def progress(self, request: TrackedRequest, tokens: Tokens) -> None:
        units = self._service.units(tokens.prompt, tokens.output)
        self._virtual += units / self._weight_active
        tag: _Tag = request.note
        tag.served += units
        overrun = tag.served - tag.charged
        if overrun > 0:
            tag.charged = tag.served
            self._finishes[tag] += overrun / tag.user.weight
            tag.user.finish += overrun / tag.user.weight

    def depart(self, request: TrackedRequest) -> None:
        tag: _Tag = request.note
        del self._finishes[tag]
        user = tag.user
        _credit(user, tag.charged - tag.served)
        if request.output_done > 0:
            user.output_tokens += (request.output_done - user.output_tokens) / _OUTPUTS_REMEMBERED
        user.num_live -= 1
        if user.num_live == 0:
            self._weight_active -= user.weight
            self._idle[request.tenant] = self._active.pop(request.tenant)
            self._forget_longest_idle()
        if not self._active:
            self._weight_active = 0.0  # rounding may have left a trace

    def settle(self, tenant: str, tokens: Tokens) -> None:
        units = self._service.units(tokens.prompt, tokens.output)
        _credit(self._active.get(tenant) or self._user(tenant), -units)
        if self._active:
            self._virtual += max(0.0, units) / self._weight_active

    def rerank(self, now_s: float, num_steps: int) -> None:  # service is this policy's clock
        self._groups.update(self._finishes)

    def priorities(self, requests: Iterable[TrackedRequest]) -> list[int]:
        return [request.note.rank for request in requests]

    def counters(self) -> Mapping[str, float]:
        """By how much each tenant's last request finishes after V."""
        return {
            tenant: max(0.0, user.finish - self._virtual)
            for users in (self._active, self._idle)
            for tenant, user in users.items()
        }

    def save(self) -> bytes:
        tenants = {
            tenant: (user.finish, user.output_tokens)
            for users in (self._idle, self._active)
            for tenant, user in users.items()
        }
        return msgspec.msgpack.encode(_TimelineState(self._virtual, tenants))

    def load(self, state: bytes) -> None:
        """Take up the timeline where it stood; live requests keep their places on it."""
        saved = msgspec.msgpack.decode(state, type=_TimelineState)
        self._virtual = saved.virtual
        shifts = dict.fromkeys(self._active.values(), saved.virtual)
        for tenant, (finish, output_tokens) in saved.tenants.items():
            user = self._active.get(tenant) or self._user(tenant)
            shifts[user] = finish - user.finish
            user.output_tokens = output_tokens
        for user, shift in shifts.items():
            user.finish += shift
        for tag in self._finishes:
            self._finishes[tag] += shifts[tag.user]

    def _predicted_units(self, request: TrackedRequest, user: _User) -> float:
        """Service that the request is expected to take from now on."""
        output_tokens = user.output_tokens
        if request.max_output_tokens is not None:
            left = max(0, request.max_output_tokens - request.output_done)
            output_tokens = min(output_tokens, left)
        return self._service.units(request.prompt_left, output_tokens)

    def _activate(self, tenant: str) -> _User:
        user = self._active.get(tenant)
        if user is None:
            user = self._active[tenant] = self._user(tenant)
            del self._idle[tenant]
            self._weight_active += user.weight
        user.num_live += 1
        return user

    def _user(self, tenant: str) -> _User:
        """A tenant that is idle, new if it is not known."""
        user = self._idle.get(tenant)
        if user is None:
            user = self._idle[tenant] = _User(self._shares[tenant].weight)
            self._forget_longest_idle()
        return user

    def _forget_longest_idle(self) -> None:
        while len(self._idle) > self._max_idle_tenants:
            self._idle.popitem(last=False)


def _credit(user: _User, units: float) -> None:
    """Give a tenant back what it was charged, or charge it where ``units`` is below 0."""
    user.finish = max(0.0, user.finish - units / user.weight)
