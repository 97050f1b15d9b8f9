"""Priorities that follow a pattern instead of anybody's interest: ``random`` and ``markov``.

For measuring what switches cost: FastSwitch (arXiv:2411.18424) is measured with these two. Owns
when levels change, every ``1 / update_frequency`` engine steps; what they change to is in
``patterns``. Updates that fall between two rankings count as one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from scheduler.policies.base import BasePolicy
from scheduler.policies.patterns import PATTERNS
from scheduler.service import ServiceWeights
from scheduler.shares import TenantShares
from scheduler.tracking import TrackedRequest


@dataclass(slots=True, eq=False)
class _Level:
    """The level of one live request, drawn by its conversation's name or its own."""

    name: str
    level: int


class TracePriorities(BasePolicy):
    """Every live request has the level of the latest update, or of its arrival since then."""

    def __init__(
        self,
        service: ServiceWeights,
        shares: TenantShares,
        *,
        pattern: str,
        seed: str,
        update_frequency: float,
    ) -> None:
        super().__init__(service, shares)
        self.name = pattern
        self._pattern = PATTERNS[pattern]
        self._seed = seed
        self._update_frequency = update_frequency  # per engine step
        self._update = 0
        self._levels: dict[_Level, None] = {}  # of the live requests

    def arrive(self, request: TrackedRequest) -> None:
        name = f"{request.tenant} {request.conversation or request.request_id}"
        level = self._pattern(self._seed, self._update, name, None)
        request.note = _Level(name, level)
        self._levels[request.note] = None

    def depart(self, request: TrackedRequest) -> None:
        del self._levels[request.note]

    def rerank(self, now_s: float, num_steps: int) -> None:  # engine steps are the clock here
        update = int(num_steps * self._update_frequency)
        if update <= self._update:
            return
        self._update = update
        for each in self._levels:
            each.level = self._pattern(self._seed, update, each.name, each.level)

    def priorities(self, requests: Iterable[TrackedRequest]) -> list[int]:
        return [request.note.level for request in requests]
