"""The least counter of a changing crowd, without a look at everybody.

Counters rise nearly always. A heap keeps for each member a counter that it had; as long as who
falls is noted again, none of those kept is above the counter as it is, so only the top has to be
looked at: it is the least, or is put back where it stands now. A crowd of a thousand costs a few
looks this way, where a tenant's return would otherwise cost a thousand.
"""

from collections.abc import Callable, Iterable
from heapq import heapify, heappop, heappush, heapreplace
from typing import Generic, TypeVar

Member = TypeVar("Member")

_FEW = 64


class LeastCounter(Generic[Member]):
    """Members by counters they had.

    ``counter`` gives a member's counter as it is, and None once it is no member. Every member
    has an entry that is not above it; entries of those who have left go when they are met, or
    when stale ones may outnumber the others. A fall as small as a rounding error need not be noted:
    the least may be too high by that.
    """

    def __init__(self, counter: Callable[[Member], float | None]) -> None:
        self._counter = counter
        self._heap: list[tuple[float, int, Member]] = []
        self._crowded_from = _FEW

    def note(self, member: Member) -> None:
        """A member has come, or its counter has fallen."""
        counter = self._counter(member)
        if counter is not None:
            heappush(self._heap, (counter, id(member), member))

    def renew(self, members: Iterable[Member]) -> None:
        """These are all: forget what else was kept."""
        self._heap = []
        for member in members:
            counter = self._counter(member)
            if counter is not None:
                self._heap.append((counter, id(member), member))
        heapify(self._heap)
        self._crowded_from = 2 * len(self._heap) + _FEW

    def drop_stale(self) -> None:
        """Let go of entries that are no longer needed, if that is worth a look at all of them."""
        if len(self._heap) > self._crowded_from:
            self.renew({key: member for _, key, member in self._heap}.values())

    def least(self) -> float | None:
        """The least counter of all members, None where there is no member."""
        while self._heap:
            kept, key, member = self._heap[0]
            counter = self._counter(member)
            if counter is None:
                heappop(self._heap)
            elif counter > kept:
                heapreplace(self._heap, (counter, key, member))
            else:
                return counter
        return None
