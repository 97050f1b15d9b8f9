"""Engines in the order in which a request that outranks somebody would go to them.

Owns that order, by what it was last told of each engine: where the least urgent request of all
runs, of equals the less loaded. Kept in order all the time, since a look at every engine for
every request that finds no room would cost more than all else that placing it takes.
"""

from bisect import bisect_left, insort
from collections.abc import Iterator

_Entry = tuple[int, float, str]  # negated worst priority, load, engine


class WorstFirst:
    """Engines that run somebody, once each. ``_order`` has their entries, sorted."""

    def __init__(self) -> None:
        self._order: list[_Entry] = []
        self._entries: dict[str, _Entry] = {}

    def __iter__(self) -> Iterator[tuple[str, int]]:
        """Each engine with the priority of its least urgent running request."""
        for negated, _, engine_id in self._order:
            yield engine_id, -negated

    def put(self, engine_id: str, worst_running: int, load: float) -> None:
        """An engine's least urgent running request has this priority, and the engine this load."""
        self.drop(engine_id)
        entry = self._entries[engine_id] = -worst_running, load, engine_id
        insort(self._order, entry)

    def drop(self, engine_id: str) -> None:
        """An engine is gone, or nobody runs there; one that is not there already stays so."""
        entry = self._entries.pop(engine_id, None)
        if entry is not None:
            del self._order[bisect_left(self._order, entry)]
