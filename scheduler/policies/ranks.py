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
from math import inf, nan
from typing import Generic, Protocol, TypeVar

from scheduler.policies.numbering import MIDDLE, renumbered


class Ranked(Hashable, Protocol):
    """Who has a rank. It is kept with its owner, as it is read for every live request."""

    rank: int


Owner = TypeVar("Owner", bound=Ranked)


class RankGroups(Generic[Owner]):
    """Ranks by counter; owners whose counters are about equal share one.

    Right after ``update`` no rank contradicts the order of the counters, and counters more
    than the quantum apart have different ranks. Ranks are not counted from the front: a group
    that keeps its place among the others keeps its rank (``numbering``).
    """

    def __init__(self, quantum: float) -> None:
        self._quantum = quantum
        # The least counter and the rank of each group. There is one for whoever comes first.
        self._firsts, self._ranks = [-inf], [MIDDLE]

    def update(self, counters: Mapping[Owner, float]) -> None:
        """Rank these anew, all of whom were inserted; the others are gone."""
        groups = self._grouped(counters)
        if not groups:
            return
        self._firsts = [counters[group[0]] for group in groups]
        # Who joins a group or leaves it does so at its edge: most had the middle one's rank.
        self._ranks = renumbered([group[len(group) // 2].rank for group in groups])
        for group, rank in zip(groups, self._ranks, strict=True):
            for owner in group:
                owner.rank = rank

    def insert(self, owner: Owner, counter: float) -> None:
        """Give one that comes between two updates the rank of the group below it."""
        owner.rank = self._ranks[max(0, bisect_right(self._firsts, counter) - 1)]

    def _grouped(self, counters: Mapping[Owner, float]) -> list[list[Owner]]:
        """Owners in the order of their counters, those together that share a rank."""
        groups: list[list[Owner]] = []
        group: list[Owner] = []
        rank_before: int | None = None  # of the group's first
        reach_old = reach_new = nan  # the highest counter that it takes in; nobody's at the start
        for owner in sorted(counters, key=counters.__getitem__):
            counter = counters[owner]
            if counter <= (reach_old if owner.rank == rank_before else reach_new):
                group.append(owner)
                continue
            group = [owner]
            groups.append(group)
            rank_before = owner.rank
            reach_old, reach_new = counter + self._quantum, counter + self._quantum / 2
        return groups
