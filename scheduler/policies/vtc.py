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

Lifts. As in the paper, a tenant is lifted whenever it sends a request and has none that waits for
its first token yet, and to the least of those that have: what it did not ask for is not owed to it,
also not to one that always has something small under way. Nor can a newcomer be lifted to such a
tenant's low counter and run ahead of the others until it has caught up with them.

Who asks for little. A tenant with fewer interactive requests than half the mean can be given a
place for each at little cost to the others. It ranks as if its counter stood ``head_start`` lower,
and first among equals. Else a tenant that comes back from idle, lifted to the counter of one with
hundreds in line, would wait behind them all until that one's counter has moved on; and if what it
sends first lifts its counter by more than a quantum, so would what it sends next. It is a start,
not a share: a tenant that keeps something small in line is that much ahead once, and from then on
served as the others are.

Classes. Requests are ranked by tenant and class, and batch work as if its tenant's counter
stood ``batch_lag`` higher. So who waits for an answer goes first in a burst of up to that much
service, and from then on the two take turns: no strict order of classes, nobody starves, and in
the long run shares follow the weights. A tenant is lifted to those of the class with which it
comes back: to one of the other class it would owe, or be owed, the burst.

The bound. Let U be the most that one counter rises between two rankings: the inputs its tenant
starts and the tokens it is given in that time, over its weight (where a ranking covers one
batch, VTC's ``max(w_in * longest input, w_out * tokens in the batch)``). Where engines run a
waiting request before any of a higher rank, a counter more than a quantum above another that
has requests waiting there does not rise. So the counters of tenants that both wait on the same
engines stay within ``quantum + U``, and what they receive over any interval, an input counted
when it starts and each divided by its weight, within ``2 * (quantum + U)``. Work that is
aborted widens this by what it gives back. A tenant with interactive work waiting may get
``batch_lag`` further ahead of one that has batch work alone, and never falls further behind it;
one that asks for little ``head_start`` further ahead of one that asks for more.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Self

import msgspec

from scheduler.ledger import Tokens
from scheduler.policies.classes import class_of
from scheduler.policies.least import LeastCounter
from scheduler.policies.ranks import RankGroups
from scheduler.service import ServiceWeights
from scheduler.shares import ServiceClass, TenantShares
from scheduler.tracking import TrackedRequest


class _VtcState(msgspec.Struct, array_like=True, frozen=True):
    """What outlives the process: per tenant ``(served, lifted_to)``, and the last that waited."""

    tenants: dict[str, tuple[float, float]]
    last_waited: float  # its counter


@dataclass(slots=True)
class _Account:
    """One tenant. ``served`` never falls below ``lifted_to``; each class it has live has a lane."""

    weight: float
    served: float = 0.0  # service over weight, lifts included
    lifted_to: float = 0.0
    reserved: float = 0.0  # service units
    lanes: "dict[ServiceClass, _Lane]" = field(default_factory=dict)

    @property
    def counter(self) -> float:
        return self.served + self.reserved / self.weight

    @property
    def is_waiting(self) -> bool:
        """Whether a request of the tenant has not run yet."""
        return any(lane.num_waiting for lane in self.lanes.values())


@dataclass(slots=True, eq=False)
class _Lane:
    """The live requests of one tenant and one class: there is at least one."""

    account: _Account
    service_class: ServiceClass
    lag: float  # by how much it ranks behind the tenant's counter
    head_start: float  # by how much it ranks before that while it asks for little
    num_live: int = 0
    num_waiting: int = 0  # of them, those that have not run yet
    is_modest: bool = False  # it asks for little, beside the others
    rank: int = 0  # its group's
    priority: int = 0  # two for each rank

    @property
    def counter(self) -> float:
        return self.account.counter + self.lag - (self.head_start if self.is_modest else 0.0)

    def weigh(self, mean_live: float) -> bool:
        """See what it asks for; ``mean_live`` is how many requests a unit of weight has live.

        Between half of that and the whole it stays what it is, so that a request more or less
        changes nothing. Returns whether it has changed.
        """
        was_modest = self.is_modest
        asked = self.num_live / self.account.weight
        is_little = asked <= (mean_live if was_modest else mean_live / 2)
        self.is_modest = is_little and self.service_class is ServiceClass.INTERACTIVE
        return self.is_modest is not was_modest

    def take_priority(self) -> None:
        """After its rank: of equals those that ask for little go first."""
        self.priority = 2 * self.rank + (not self.is_modest)


@dataclass(slots=True)
class _Demand:
    """How much all lanes ask for together."""

    num_live: int = 0
    weight: float = 0.0  # of the lanes' tenants

    @property
    def mean_live(self) -> float:
        """How many requests a unit of weight has live; 0 without any."""
        return self.num_live / self.weight if self.num_live else 0.0

    @classmethod
    def of(cls, lanes: Collection[_Lane]) -> Self:
        return cls(sum(lane.num_live for lane in lanes), sum(lane.account.weight for lane in lanes))


def _level(lane: _Lane) -> float | None:
    """Where a lane's tenant stands among others of its class, while it has requests waiting."""
    return lane.account.counter if lane.num_waiting else None


class VirtualTokenCounter:
    """Ranks tenants by counter, class by class. A tenant is backlogged while it has live requests.

    Every account is either backlogged or idle, and an idle one has nothing reserved. Beyond
    ``max_idle_tenants`` those idle longest are forgotten. A forgotten tenant comes back as a
    new one, at nought, and the lift takes it to where it would be had it been remembered,
    unless its counter was still above the least: then it is forgiven the difference. What it
    takes to lift with nobody waiting, the last that waited, is kept apart.
    """

    name = "vtc"
    keeps_turns = True

    def __init__(
        self,
        service: ServiceWeights,
        shares: TenantShares,
        *,
        quantum: float,
        batch_lag: float = 0.0,
        head_start: float = 0.0,
        max_idle_tenants: int = 10_000,
    ) -> None:
        self._service = service
        self._shares = shares
        self._lags = {ServiceClass.INTERACTIVE: 0.0, ServiceClass.BATCH: batch_lag}
        self._head_start = head_start
        self._max_idle_tenants = max_idle_tenants
        self._backlogged: dict[str, _Account] = {}
        self._idle: OrderedDict[str, _Account] = OrderedDict()  # left longest ago first
        self._last_waited = _Account(weight=1.0)
        self._last_of_class: dict[ServiceClass, _Lane] = {}  # that waited
        self._groups = RankGroups[_Lane](quantum)
        # Counted anew at each ranking, as weights change; kept up between two, in which a flood's
        # first second may lie.
        self._demand = _Demand()
        self._least = {each: LeastCounter(_level) for each in ServiceClass}

    def reweigh(self) -> None:
        """Price reservations and all further service by the new weights; the past stays."""
        for accounts in (self._backlogged, self._idle):
            for tenant, account in accounts.items():
                account.weight = self._shares[tenant].weight
        self._demand = _Demand.of(self._lanes())
        self._renew_least()

    def arrive(self, request: TrackedRequest) -> None:
        service_class = class_of(request, self._shares)
        account = self._backlogged.get(request.tenant)
        if account is None:
            account = self._account(request.tenant)
            del self._idle[request.tenant]
            self._backlogged[request.tenant] = account
        if not account.is_waiting:
            self._lift(account, service_class)
        lane = account.lanes.get(service_class)
        is_new = lane is None
        if lane is None:
            lane = _Lane(account, service_class, self._lags[service_class], self._head_start)
            account.lanes[service_class] = lane
            self._demand.weight += account.weight
        lane.num_live += 1
        lane.num_waiting += 1
        self._demand.num_live += 1
        if lane.weigh(self._demand.mean_live) or is_new:
            self._groups.insert(lane, lane.counter)
            lane.take_priority()
        if lane.num_waiting == 1:
            self._least[service_class].note(lane)
        request.note = lane

    def start(self, request: TrackedRequest) -> None:
        account = self._backlogged[request.tenant]
        account.reserved += self._service.input * request.prompt_left
        self._wait_no_more(request.note)

    def progress(self, request: TrackedRequest, tokens: Tokens) -> None:
        account = self._backlogged[request.tenant]
        account.reserved -= self._service.input * tokens.prompt
        account.served += self._service.units(tokens.prompt, tokens.output) / account.weight

    def depart(self, request: TrackedRequest) -> None:
        lane: _Lane = request.note
        account = lane.account
        if request.has_started:
            account.reserved -= self._service.input * request.prompt_left
        else:
            self._wait_no_more(lane)
        lane.num_live -= 1
        self._demand.num_live -= 1
        if lane.num_live == 0:
            del account.lanes[lane.service_class]
            self._demand.weight -= account.weight
        if not account.lanes:
            account.reserved = 0.0  # rounding may have left a trace
            self._idle[request.tenant] = self._backlogged.pop(request.tenant)
            self._forget_longest_idle()
        elif request.has_started and request.prompt_left:
            self._note_fall(account)

    def settle(self, tenant: str, tokens: Tokens) -> None:
        account = self._backlogged.get(tenant) or self._account(tenant)
        served = account.served + self._service.units(tokens.prompt, tokens.output) / account.weight
        account.served = max(account.lifted_to, served)
        self._note_fall(account)

    def rerank(self, now_s: float, num_steps: int) -> None:  # service is this policy's clock
        lanes = self._lanes()
        self._demand = _Demand.of(lanes)
        mean_live = self._demand.mean_live
        for lane in lanes:
            lane.weigh(mean_live)
        self._groups.update({lane: lane.counter for lane in lanes})
        for lane in lanes:
            lane.take_priority()
        for least in self._least.values():
            least.drop_stale()

    def priorities(self, requests: Iterable[TrackedRequest]) -> list[int]:
        return [request.note.priority for request in requests]

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
        return msgspec.msgpack.encode(_VtcState(tenants, self._last_waited.counter))

    def load(self, state: bytes) -> None:
        saved = msgspec.msgpack.decode(state, type=_VtcState)
        self._last_waited = _Account(weight=1.0, served=saved.last_waited)
        self._last_of_class.clear()
        for tenant, (served, lifted_to) in saved.tenants.items():
            account = self._backlogged.get(tenant) or self._account(tenant)
            account.served, account.lifted_to = served, lifted_to
        self._renew_least()

    def _lanes(self) -> list[_Lane]:
        return [*chain.from_iterable(each.lanes.values() for each in self._backlogged.values())]

    def _account(self, tenant: str) -> _Account:
        """The account of a tenant that is idle, opened if it is not known."""
        account = self._idle.get(tenant)
        if account is None:
            account = self._idle[tenant] = _Account(self._shares[tenant].weight)
            self._forget_longest_idle()
        return account

    def _lift(self, account: _Account, service_class: ServiceClass) -> None:
        """Bring an account up to the least counter of those waiting in its class. Never down.

        With nobody waiting there, up to the one that did last, if it still has requests there; else
        up to the least that waits in another class, or the last that did. Without this a tenant
        would come back with the service it did not ask for and starve the others.
        """
        missing = self._floor(service_class) - account.counter
        if missing > 0:
            account.served += missing
            account.lifted_to = account.served

    def _floor(self, service_class: ServiceClass) -> float:
        least = self._least[service_class].least()
        if least is not None:
            return least
        last = self._last_of_class.get(service_class)
        if last is not None and last.num_live:
            return last.account.counter
        counters = (each.least() for each in self._least.values())
        waiting = [counter for counter in counters if counter is not None]
        return min(waiting, default=self._last_waited.counter)

    def _wait_no_more(self, lane: _Lane) -> None:
        """One of the lane's requests runs, or has gone without."""
        lane.num_waiting -= 1
        if not lane.num_waiting:
            self._last_of_class[lane.service_class] = lane
            self._last_waited = lane.account

    def _note_fall(self, account: _Account) -> None:
        """An account's counter may have fallen."""
        for lane in account.lanes.values():
            self._least[lane.service_class].note(lane)

    def _renew_least(self) -> None:
        for service_class, least in self._least.items():
            lanes = (account.lanes.get(service_class) for account in self._backlogged.values())
            least.renew(lane for lane in lanes if lane is not None)

    def _forget_longest_idle(self) -> None:
        while len(self._idle) > self._max_idle_tenants:
            self._idle.popitem(last=False)
