"""From counters that move with every token to ranks that rarely change.

Owns how far two counters must be apart before their owners get different ranks. Whose counters
they are (a tenant's, a job's, a request's) and what they count (service, seconds) is the
policy's affair, and so is the quantum, in the counters' unit. Three ways were weighed; in all
of them counters more than one quantum apart are strictly ordered:

- Fixed buckets, ``floor(counter / quantum)``: two owners that rise side by side cross each
  edge one after the other, so their ranks part and meet again once per quantum, however
  small the difference between them.
- Buckets counted from the least counter: quiet while all rise together, but one light owner
  with a low counter makes them fixed buckets again; and at an edge one token parts two
  owners and the next brings them together.
- Groups, as here: going up the counters, an owner belongs to the group at hand as long as it
  is within reach of the group's first. Reach is a quantum for an owner that was in the group
  before and half a quantum for any other. So one that has outgrown a group is back only
  after the group has gained half a quantum on it, and owners that rise alike stay equal however
  far others fall behind, but for the moment in which they outgrow a group.

Equality within a quantum costs up to a quantum of order; the half that an owner has to
wait for costs nothing on top, since it only keeps apart who may be apart.
"""

from bisect import bisect_right
from collections.abc import Hashable, Mapping
from typing import Generic, TypeVar

Owner = TypeVar("Owner", bound=Hashable)


class RankGroups(Generic[Owner]):
    """Dense ranks by counter; owners whose counters are about equal share one.

    Right after ``update`` no rank contradicts the order of the counters, and counters more
    than the quantum apart have different ranks.
    """

    def __init__(self, quantum: float) -> None:
        self._quantum = quantum
        self._ranks: dict[Owner, int] = {}
        self._firsts: list[float] = []  # the least counter of each group

    @property
    def ranks(self) -> Mapping[Owner, int]:
        return self._ranks

    def update(self, counters: Mapping[Owner, float]) -> None:
        """Rank these anew and forget all others."""
        before = self._ranks
        self._ranks, self._firsts = {}, []
        group_before: int | None = None
        reach_old = reach_new = 0.0  # the highest counter the group at hand takes in
        for owner in sorted(counters, key=counters.__getitem__):
            counter = counters[owner]
            rank_before = before.get(owner)
            reach = reach_old if rank_before == group_before else reach_new
            if not self._firsts or counter > reach:
                self._firsts.append(counter)
                group_before = rank_before
                reach_old, reach_new = counter + self._quantum, counter + self._quantum / 2
            self._ranks[owner] = len(self._firsts) - 1

    def insert(self, owner: Owner, counter: float) -> None:
        """Give one that comes between two updates the rank of the group below it."""
        self._ranks[owner] = max(0, bisect_right(self._firsts, counter) - 1)
