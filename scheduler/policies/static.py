"""The request's own priority, as its sender gave it.

For senders who know best and trust each other: a stream of urgent requests keeps the rest waiting,
and nothing here stands in its way.
"""

from collections import Counter
from collections.abc import Iterable

from scheduler.policies.base import BasePolicy
from scheduler.policies.ranks import RankGroups
from scheduler.service import ServiceWeights
from scheduler.shares import TenantShares
from scheduler.tracking import TrackedRequest


class StaticPriority(BasePolicy):
    """Ranks requests by vLLM's ``priority``: the lowest runs first, 0 where none is given."""

    name = "static"

    def __init__(self, service: ServiceWeights, shares: TenantShares) -> None:
        super().__init__(service, shares)
        self._num_live: Counter[int] = Counter()  # by priority
        self._levels = RankGroups[int](0.0)

    def arrive(self, request: TrackedRequest) -> None:
        priority = request.wishes.priority
        self._num_live[priority] += 1
        if priority not in self._levels.ranks:
            self._levels.insert(priority, priority)

    def depart(self, request: TrackedRequest) -> None:
        self._num_live[request.wishes.priority] -= 1
        if not self._num_live[request.wishes.priority]:
            del self._num_live[request.wishes.priority]

    def rerank(self, now_s: float, num_steps: int) -> None:
        self._levels.update({priority: priority for priority in self._num_live})

    def priorities(self, requests: Iterable[TrackedRequest]) -> list[int]:
        ranks = self._levels.ranks
        return [ranks[request.wishes.priority] for request in requests]
