"""Virtual token counter: the tenant that has received least for its weight runs next.

Owns one counter per tenant, in service units per unit of weight, after VTC (arXiv:2401.00588).
How counters become ranks is in ``ranks``.

A counter is what the tenant was served plus what its requests have reserved. A request
reserves its whole input when it first runs, not when it is admitted: were mere waiting
charged, a deep queue would count as service received and its owner would starve behind it.
The reservation turns into service as the prompt is computed and what is left of it goes when
the request goes. It is kept apart from the service, so giving it back can neither undo a lift
nor leave a credit, and it stays while a request is displaced: giving it back then would put
its tenant in front again at once, and the two would displace each other for ever.

The bound. Let U be the most that one counter rises between two rankings: the inputs its tenant
starts and the tokens it is given in that time, over its weight (where a ranking covers one
batch, VTC's ``max(w_in * longest input, w_out * tokens in the batch)``). Where engines run a
waiting request before any of a higher rank, a counter more than a quantum above another that
has requests waiting there does not rise. So the counters of tenants that both wait on the same
engines stay within ``quantum + U``, and what they receive over any interval, an input counted
when it starts and each divided by its weight, within ``2 * (quantum + U)``. Work that is
aborted widens this by what it gives back.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from scheduler.ledger import Tokens
from scheduler.policies.ranks import RankGroups
from scheduler.service import ServiceWeights
from scheduler.shares import TenantShares
from scheduler.tracking import TrackedRequest


class _VtcState(msgspec.Struct, array_like=True, frozen=True):
    """What outlives the process: per tenant ``(served, lifted_to)``, and who left last."""

    tenants: dict[str, tuple[float, float]]
    last_left: float


@dataclass(slots=True)
class _Account:
    """One tenant. ``served`` never falls below ``lifted_to``."""

    weight: float
    served: float = 0.0  # service over weight, lifts included
    lifted_to: float = 0.0
    reserved: float = 0.0  # service units
    num_live: int = 0

    @property
    def counter(self) -> float:
        return self.served + self.reserved / self.weight


class VirtualTokenCounter:
    """Ranks tenants by counter. A tenant is backlogged while it has live requests.

    Every account is either backlogged or idle, and an idle one has nothing reserved. Beyond
    ``max_idle_tenants`` those idle longest are forgotten. A forgotten tenant comes back as a
    new one, at nought, and the lift takes it to where it would be had it been remembered,
    unless its counter was still above the least: then it is forgiven the difference. What it
    takes to lift with nobody backlogged, the counter of the last to leave, is kept apart.
    """

    name = "vtc"

    def __init__(
        self,
        service: ServiceWeights,
        shares: TenantShares,
        *,
        quantum: float,
        max_idle_tenants: int = 10_000,
    ) -> None:
        self._service = service
        self._shares = shares
        self._max_idle_tenants = max_idle_tenants
        self._backlogged: dict[str, _Account] = {}
        self._idle: OrderedDict[str, _Account] = OrderedDict()  # left longest ago first
        self._last_left = 0.0
        self._groups = RankGroups(quantum)

    def reweigh(self) -> None:
        """Price reservations and all further service by the new weights; the past stays."""
        for accounts in (self._backlogged, self._idle):
            for tenant, account in accounts.items():
                account.weight = self._shares[tenant].weight

    def arrive(self, request: TrackedRequest) -> None:
        account = self._backlogged.get(request.tenant)
        if account is None:
            account = self._account(request.tenant)
            self._lift(account)
            del self._idle[request.tenant]
            self._backlogged[request.tenant] = account
            self._groups.insert(request.tenant, account.counter)
        account.num_live += 1

    def start(self, request: TrackedRequest) -> None:
        account = self._backlogged[request.tenant]
        account.reserved += self._service.input * request.prompt_left

    def progress(self, request: TrackedRequest, tokens: Tokens) -> None:
        account = self._backlogged[request.tenant]
        account.reserved -= self._service.input * tokens.prompt
        account.served += self._service.units(tokens.prompt, tokens.output) / account.weight

    def depart(self, request: TrackedRequest) -> None:
        account = self._backlogged[request.tenant]
        account.num_live -= 1
        if request.has_started:
            account.reserved -= self._service.input * request.prompt_left
        if account.num_live == 0:
            account.reserved = 0.0  # rounding may have left a trace
            self._last_left = account.counter
            self._idle[request.tenant] = self._backlogged.pop(request.tenant)
            self._forget_longest_idle()

    def settle(self, tenant: str, tokens: Tokens) -> None:
        account = self._backlogged.get(tenant) or self._account(tenant)
        served = account.served + self._service.units(tokens.prompt, tokens.output) / account.weight
        account.served = max(account.lifted_to, served)

    def rerank(self, now_s: float, num_steps: int) -> None:  # service is this policy's clock
        self._groups.update(
            {tenant: account.counter for tenant, account in self._backlogged.items()}
        )

    def priorities(self, requests: Iterable[TrackedRequest]) -> list[int]:
        ranks = self._groups.ranks
        return [ranks[request.tenant] for request in requests]

    def counters(self) -> Mapping[str, float]:
        return {
            tenant: account.counter
            for accounts in (self._backlogged, self._idle)
            for tenant, account in accounts.items()
        }

    def save(self) -> bytes:
        tenants = {
            tenant: (account.served, account.lifted_to)
            for accounts in (self._idle, self._backlogged)
            for tenant, account in accounts.items()
        }
        return msgspec.msgpack.encode(_VtcState(tenants, self._last_left))

    def load(self, state: bytes) -> None:
        saved = msgspec.msgpack.decode(state, type=_VtcState)
        self._last_left = saved.last_left
        for tenant, (served, lifted_to) in saved.tenants.items():
            account = self._backlogged.get(tenant) or self._account(tenant)
            account.served, account.lifted_to = served, lifted_to

    def _account(self, tenant: str) -> _Account:
        """The account of a tenant that is idle, opened if it is not known."""
        account = self._idle.get(tenant)
        if account is None:
            account = self._idle[tenant] = _Account(self._shares[tenant].weight)
            self._forget_longest_idle()
        return account

    def _lift(self, account: _Account) -> None:
        """Bring an idle account up to the least backlogged counter.

        With nobody backlogged, up to that of the tenant that left last. Without this a tenant
        would come back with the service it did not ask for and starve the others. Never down.
        """
        others = self._backlogged.values()
        floor = min((other.counter for other in others), default=self._last_left)
        if floor > account.served:
            account.served = account.lifted_to = floor

    def _forget_longest_idle(self) -> None:
        while len(self._idle) > self._max_idle_tenants:
            self._idle.popitem(last=False)
