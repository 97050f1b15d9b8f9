"""From counters that move with every token to ranks that rarely change.

Owns how far two counters must be apart before their owners get different ranks. Three ways
were weighed; in all of them counters more than one quantum apart are strictly ordered:

- Fixed buckets, ``floor(counter / quantum)``: two tenants that rise side by side cross each
  edge one after the other, so their ranks part and meet again once per quantum, however
  small the difference between them.
- Buckets counted from the least counter: quiet while all rise together, but one light tenant
  with a low counter makes them fixed buckets again; and at an edge one token parts two
  tenants and the next brings them together.
- Groups, as here: going up the counters, a tenant belongs to the group at hand as long as it
  is within reach of the group's first. Reach is a quantum for a tenant that was in the group
  before and half a quantum for any other. So a tenant that has outgrown a group is back only
  after the group has gained half a quantum on it, and tenants served alike stay equal however
  far others fall behind, but for the moment in which they outgrow a group.

Equality within a quantum costs up to a quantum of fairness; the half that a tenant has to
wait for costs nothing on top, since it only keeps apart who may be apart.
"""

from bisect import bisect_right
from collections.abc import Mapping


class RankGroups:
    """Dense ranks of tenants by counter; those about equal share one.

    Right after ``update`` no rank contradicts the order of the counters, and counters more
    than the quantum apart have different ranks.
    """

    def __init__(self, quantum: float) -> None:
        self._quantum = quantum
        self._ranks: dict[str, int] = {}
        self._firsts: list[float] = []  # the least counter of each group

    @property
    def ranks(self) -> Mapping[str, int]:
        return self._ranks

    def update(self, counters: Mapping[str, float]) -> None:
        """Rank these tenants anew and forget all others."""
        before = self._ranks
        self._ranks, self._firsts = {}, []
        group_before: int | None = None
        reach_old = reach_new = 0.0  # the highest counter the group at hand takes in
        for counter, tenant in sorted((counter, tenant) for tenant, counter in counters.items()):
            rank_before = before.get(tenant)
            reach = reach_old if rank_before == group_before else reach_new
            if not self._firsts or counter > reach:
                self._firsts.append(counter)
                group_before = rank_before
                reach_old, reach_new = counter + self._quantum, counter + self._quantum / 2
            self._ranks[tenant] = len(self._firsts) - 1

    def insert(self, tenant: str, counter: float) -> None:
        """Give a tenant that comes between two updates the rank of the group below it."""
        self._ranks[tenant] = max(0, bisect_right(self._firsts, counter) - 1)
