"""vLLM's queue of those who wait, where ranks change while they wait.

Owns the order of admission, which is vLLM's: priority, arrival, request id. Its own queue is a
heap of the requests themselves, all of which a few new priorities upset; here a new rank costs as
much as an arrival. After the priority queue in the documentation of Python's ``heapq``.
"""

import heapq
from collections.abc import Iterable, Iterator
from itertools import count

from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.request import Request

from scheduler.displacement import ranked

# Priority, arrival, id; a number that no other entry has, so that no two requests are compared.
Entry = tuple[int, float, str, int, Request]

_FEW = 64


class RankedQueue(RequestQueue):
    """Requests in the order of the ranks that they had when they were added or last ranked.

    ``_entries`` has one for each request that waits. The heap has these and stale ones, whose
    request has left or got another rank; its first is never stale.
    """

    def __init__(self) -> None:
        self._entries: dict[str, Entry] = {}
        self._heap: list[Entry] = []
        self._numbers = count()

    def __bool__(self) -> bool:
        return bool(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __iter__(self) -> Iterator[Request]:
        for entry in sorted(self._entries.values()):
            yield entry[-1]

    @property
    def best_priority(self) -> int:
        return self._heap[0][0]

    def best_first(self) -> Iterator[Request]:
        """The same as iterating, at the cost of what is looked at; nothing may change meanwhile."""
        for entry in ranked(self._heap):
            if self._is_current(entry):
                yield entry[-1]

    def rank_anew(self, requests: Iterable[Request]) -> None:
        """Give those of them that wait here the places that their priorities say now."""
        if not self._entries:
            return
        for request in requests:
            if request.request_id in self._entries:
                self._push(request)
        self._drop_stale()

    # --- what vLLM asks -------------------------------------------------------------------------

    def add_request(self, request: Request) -> None:
        self._push(request)
        self._drop_stale()

    def prepend_request(self, request: Request) -> None:
        self.add_request(request)

    def prepend_requests(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self.add_request(request)

    def peek_request(self) -> Request:
        return self._heap[0][-1]

    def pop_request(self) -> Request:
        request = heapq.heappop(self._heap)[-1]
        del self._entries[request.request_id]
        self._drop_stale()
        return request

    def remove_request(self, request: Request) -> None:
        del self._entries[request.request_id]
        self._drop_stale()

    def remove_requests(self, requests: Iterable[Request]) -> None:
        """Those of them that wait here."""
        for request in requests:
            self._entries.pop(request.request_id, None)
        self._drop_stale()

    # --- entries --------------------------------------------------------------------------------

    def _push(self, request: Request) -> None:
        request_id = request.request_id
        entry = (request.priority, request.arrival_time, request_id, next(self._numbers), request)
        self._entries[request_id] = entry
        heapq.heappush(self._heap, entry)

    def _drop_stale(self) -> None:
        if len(self._heap) > 2 * len(self._entries) + _FEW:
            self._heap = list(self._entries.values())
            heapq.heapify(self._heap)
        while self._heap and not self._is_current(self._heap[0]):
            heapq.heappop(self._heap)

    def _is_current(self, entry: Entry) -> bool:
        return self._entries.get(entry[2]) is entry
