"""The request's own priority, as its sender gave it.

For senders who know best and trust each other: a stream of urgent requests keeps the rest waiting,
and nothing here stands in its way.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from scheduler.policies.base import BasePolicy
from scheduler.policies.ranks import RankGroups
from scheduler.service import ServiceWeights
from scheduler.shares import TenantShares
from scheduler.tracking import TrackedRequest


@dataclass(slots=True, eq=False)
class _Level:
    """The live requests of one priority: there is at least one."""

    num_live: int = 0
    rank: int = 0


class StaticPriority(BasePolicy):
    """Ranks requests by vLLM's ``priority``: the lowest runs first, 0 where none is given."""

    name = "static"

    def __init__(self, service: ServiceWeights, shares: TenantShares) -> None:
        super().__init__(service, shares)
        self._levels: dict[int, _Level] = {}  # by priority
        self._groups = RankGroups[_Level](0.0)

    def arrive(self, request: TrackedRequest) -> None:
        priority = request.wishes.priority
        level = self._levels.get(priority)
        if level is None:
            level = self._levels[priority] = _Level()
            self._groups.insert(level, priority)
        level.num_live += 1
        request.note = level

    def depart(self, request: TrackedRequest) -> None:
        level: _Level = request.note
        level.num_live -= 1
        if not level.num_live:
            del self._levels[request.wishes.priority]

    def rerank(self, now_s: float, num_steps: int) -> None:
        self._groups.update({level: priority for priority, level in self._levels.items()})

    def priorities(self, requests: Iterable[TrackedRequest]) -> list[int]:
        return [request.note.rank for request in requests]
