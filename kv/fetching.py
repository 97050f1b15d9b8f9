"""Fetches: neighbours' blocks on their way into our own host memory, before anybody loads them.

Owns which these are and for whom they were begun. A request for which blocks are fetched waits in
line meanwhile, holding nothing, and then finds them as it finds what has been here all along. So
what its neighbour writes over before it is copied is just not found, and computed: nothing was
built on it. What a load into the device would cost that fails, ``scheduler.vllm_loads`` tells.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

from kv.host_cache import Key
from kv.neighbours import Found, Neighbours
from kv.swap import SwapPlanner
from kv.swap_manager import SwapReport

# So few are computed within the step that a fetch would hold them up.
_LEAST_TOKENS = 64


@dataclass(slots=True)
class _Fetch:
    keys: Sequence[Key]
    host_blocks: list[int]
    priority: int
    num_left: int  # copies, each worker's for itself


class Fetches:
    """What is fetched for requests that wait. Each fetches once until it is given blocks."""

    def __init__(
        self, planner: SwapPlanner, neighbours: Neighbours, *, num_workers: int, block_tokens: int
    ) -> None:
        self.keys: set[Key] = set()  # of all blocks on their way
        self._planner = planner
        self._neighbours = neighbours
        self._num_workers = num_workers
        self._least_blocks = -(-_LEAST_TOKENS // block_tokens)
        self._by_stamp: dict[int, _Fetch] = {}
        self._have_asked: set[str] = set()
        self._is_stopped = False

    def stop(self) -> None:
        """Begin none any more."""
        self._is_stopped = True

    def begin(self, request_id: str, keys: Sequence[Key], first: int, priority: int) -> bool:
        """Fetch what neighbours have of ``keys`` from the ``first`` on, if that is worth it."""
        is_too_short = len(keys) - first < self._least_blocks
        if self._is_stopped or is_too_short or request_id in self._have_asked:
            return False
        found = self._found(islice(keys, first, None))
        found = found[: self._planner.num_yielding_to(priority, at_most=len(found))]
        if len(found) < self._least_blocks:
            return False
        self._have_asked.add(request_id)
        copies = self._planner.fetch(found, behind=keys[first - 1] if first else None)
        self._by_stamp[copies[0].stamp] = _Fetch(
            [key for key, _ in found],
            [block for each in copies for block in each.host_blocks],
            priority,
            num_left=len(copies) * self._num_workers,
        )
        self.keys.update(key for key, _ in found)
        return True

    def hear(self, report: SwapReport) -> None:
        """What has come of them; the planner has forgotten what has not come whole."""
        for stamp, num_copies in report.across.items():
            fetch = self._by_stamp[stamp]
            fetch.num_left -= num_copies
            if not fetch.num_left:
                del self._by_stamp[stamp]
                self.keys.difference_update(fetch.keys)
                self._planner.end_fetch(fetch.keys, fetch.host_blocks, fetch.priority)

    def _found(self, keys: Iterable[Key]) -> list[tuple[Key, Found]]:
        """What we lack of the longest beginning that neighbours and we have together."""
        self._neighbours.look()
        found = []
        for key in keys:
            if self._planner.holds(key):
                continue
            if (source := self._neighbours.find(key)) is None:
                break
            found.append((key, source))
        return found

    def may_ask_again(self, request_id: str) -> None:
        """The request has been given blocks, or has ended."""
        self._have_asked.discard(request_id)
