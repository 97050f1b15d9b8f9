"""The seam between the fleet and a fairness policy.

The fleet tells a policy what happens to requests, in the order in which it happens; the
policy says how urgent each live request is. A policy has no clock, no randomness and no
engines of its own: what it needs it is given.

A policy may say ``keeps_turns = True``: then it never ranks a request before one that its tenant
has sent earlier in the same class, and gateways do not read what is far behind in a tenant's row.

A request is the same object from its arrival to its departure, and in between its ``note`` is the
policy's: what it has to know of the request at each ranking is best kept there. One that moves to
another engine arrives there, as another object under the same name, before it departs.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from scheduler.ledger import Tokens
from scheduler.service import ServiceWeights
from scheduler.shares import TenantShares
from scheduler.tracking import TrackedRequest


class Policy(Protocol):
    """Decides who runs next. The fleet calls it from one thread."""

    @property
    def name(self) -> str:
        """What settings and people call it."""

    def reweigh(self) -> None:
        """Tenants' shares have changed."""

    def arrive(self, request: TrackedRequest) -> None:
        """A request has become live."""

    def start(self, request: TrackedRequest) -> None:
        """A live request runs for the first time; its counts are those before that."""

    def progress(self, request: TrackedRequest, tokens: Tokens) -> None:
        """A live request, once started, has moved by ``tokens``; its counts include them."""

    def depart(self, request: TrackedRequest) -> None:
        """A live request has finished, was aborted, or was lost with its engine."""

    def settle(self, tenant: str, tokens: Tokens) -> None:
        """Tokens of a tenant were processed that no request's progress has told of.

        Negative where progress had told of too much.
        """

    def rerank(self, now_s: float, num_steps: int) -> None:
        """Decide anew. Until the next call live requests keep the priorities of this one.

        ``now_s`` is the clock of requests' ``admitted_s``; ``num_steps`` how many steps the
        engines have made, on average. Neither runs back.
        """

    def priorities(self, requests: Iterable[TrackedRequest]) -> list[int]:
        """How urgent each of these live requests is.

        The lowest runs first, equals in turn of arrival. None is below 0; beyond that only their
        order counts. Asked for many at a time, since the fleet compares them all with what the
        engines were told.
        """

    def counters(self) -> Mapping[str, float]:
        """What the policy holds against each tenant, for people to read."""

    def save(self) -> bytes:
        """All it would need to go on elsewhere, live requests aside."""

    def load(self, state: bytes) -> None:
        """Go on from what ``save`` gave, once the live requests have arrived and started."""


PolicyFactory = Callable[[ServiceWeights, TenantShares], Policy]


def keeps_turns(policy: Policy) -> bool:
    """Whether requests of one tenant and class always run in the order of their arrival."""
    return getattr(policy, "keeps_turns", False)
