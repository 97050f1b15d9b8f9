"""The request's own priority, as its sender gave it.

For senders who know best and trust each other: a stream of urgent requests starves the rest,
and nothing here stands in its way.
"""

from collections.abc import Iterable

from scheduler.policies.base import BasePolicy
from scheduler.tracking import TrackedRequest


class StaticPriority(BasePolicy):
    """Priorities are those of vLLM's ``priority``: the lowest runs first, 0 is the usual one."""

    name = "static"

    def priorities(self, requests: Iterable[TrackedRequest]) -> list[int]:
        return [request.wishes.priority for request in requests]
