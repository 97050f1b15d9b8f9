"""The line: admitted requests that wait for an engine to take them.

Owns their order and nothing else: who is next is the most urgent, equals in turn of arrival.
How urgent they are is the policy's to say, which engine has room is ``seating``'s.
"""

import heapq
from collections.abc import Collection, Iterable, Iterator
from itertools import count
from typing import NamedTuple

from scheduler.displacement import ranked
from scheduler.tracking import TrackedRequest


class _Place(NamedTuple):
    priority: int
    turn: int
    request_id: str


class WaitingLine:
    """Requests by priority, the lowest first, then by turn.

    A heap whose entries are left behind when their request goes or gets another priority; the
    request's present entry is the one in ``_places``.
    """

    def __init__(self) -> None:
        self._heap: list[_Place] = []
        self._places: dict[str, _Place] = {}
        self._requests: dict[str, TrackedRequest] = {}  # in turn of arrival
        self._turns = count()

    def __len__(self) -> int:
        return len(self._requests)

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._requests

    @property
    def requests(self) -> Collection[TrackedRequest]:
        return self._requests.values()

    def add(self, request: TrackedRequest, priority: int) -> None:
        """Let a request that is not in the line wait behind all others of its priority."""
        place = _Place(priority, next(self._turns), request.request_id)
        self._requests[request.request_id] = request
        self._places[request.request_id] = place
        heapq.heappush(self._heap, place)

    def remove(self, request_id: str) -> None:
        del self._requests[request_id], self._places[request_id]

    def in_order(self) -> Iterator[tuple[TrackedRequest, int]]:
        """Who is next and how urgent it is, one by one; each may be removed once it was given."""
        while self._heap and not self._is_present(self._heap[0]):
            heapq.heappop(self._heap)
        for place in ranked(self._heap):
            if self._is_present(place):
                yield self._requests[place.request_id], place.priority

    def reorder(self, priorities: Iterable[int]) -> None:
        """Give the requests, in the order of ``requests``, these priorities; turns stay."""
        self._places = {
            place.request_id: _Place(priority, place.turn, place.request_id)
            for place, priority in zip(self._in_turn(), priorities, strict=True)
        }
        self._heap = list(self._places.values())
        heapq.heapify(self._heap)

    def _is_present(self, place: _Place) -> bool:
        return self._places.get(place.request_id) == place

    def _in_turn(self) -> Iterable[_Place]:
        return (self._places[request_id] for request_id in self._requests)
