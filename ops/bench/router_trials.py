"""Runs a fleet of stand-in engines against a fleet scheduler in a process of its own.

Owns the order of a trial: engines join, conversations pass by, requests fill the engines, and
round after round engines run, report and obey, and each request that ends makes way for another.
"""

from collections.abc import Iterable
from itertools import islice

from ops.bench.router_load import BLOCK_TOKENS, BLOCKS_TOTAL, Arrivals, StandInEngine, Turn
from ops.bench.router_process import Placements, TimedFleet, timed_fleet
from ops.bench.router_times import FleetSize, RouterTrial
from scheduler.admission import EngineCapacity

WARM_UP_ROUNDS = 20
# Conversations that the router remembers from before, so that its memory is that of one that has
# been up for hours: at 10,000 live requests as many as it remembers at most.
PAST_CONVERSATIONS = 10  # per live request
ROUNDS_PER_LOOK = 5  # two engines get a checkpoint a second; a snapshot is made as often
BATCH = 1000  # messages sent to the router's process at once


def run_trial(size: FleetSize, policy: str, rounds: int, seed: str) -> RouterTrial:
    with timed_fleet(policy, seed) as fleet:
        crowd = _Crowd(size, fleet, seed)
        for _ in range(WARM_UP_ROUNDS):
            crowd.round()
        fleet.take_times()
        changes = []
        for number in range(rounds):
            if number % ROUNDS_PER_LOOK == 0:
                fleet.checkpoint()
                fleet.snapshot()
            changes.append(crowd.round())
        return RouterTrial(size, fleet.take_times(), fleet.rss_mb(), changes)


class _Crowd:
    """All tenants and engines of one fleet. As many requests are live after a round as before."""

    def __init__(self, size: FleetSize, fleet: TimedFleet, seed: str) -> None:
        self._fleet = fleet
        self._arrivals = Arrivals(seed, size.tenants)
        self._engines: dict[str, StandInEngine] = {}
        self._in_line: dict[str, Turn] = {}
        for number in range(size.engines):
            self._join(StandInEngine(f"engine-{number:08x}", self._arrivals.tenants))
        self._remember(size.live_requests * PAST_CONVERSATIONS)
        self._fill(size)

    def round(self) -> int:
        """An update period; how many priorities it changed."""
        ended = [turn for engine in self._engines.values() for turn in engine.run()]
        for turn in ended:
            self._arrivals.ended(turn.request)
        reports = [engine.report() for engine in self._engines.values()]
        orders, placements = self._fleet.update(reports)
        for engine_id, priorities in orders.items():
            self._engines[engine_id].obey(priorities)
        self._place(placements)
        self._send(self._arrivals.next() for _ in ended)
        return sum(map(len, orders.values()))

    def _join(self, engine: StandInEngine) -> None:
        capacity = EngineCapacity(engine.max_num_seqs, BLOCKS_TOTAL, BLOCK_TOKENS)
        self._fleet.join(engine.engine_id, capacity, engine.report(is_full=True))
        self._engines[engine.engine_id] = engine

    def _remember(self, num_conversations: int) -> None:
        past = islice(self._arrivals.one_each(), num_conversations)
        while batch := [turn.message for turn in islice(past, BATCH)]:
            self._fleet.pass_by(batch)

    def _fill(self, size: FleetSize) -> None:
        """One request of every tenant, then whose they are."""
        num_first = min(size.tenants, size.live_requests)
        self._send(islice(self._arrivals.one_each(), num_first))
        self._send(self._arrivals.next() for _ in range(size.live_requests - num_first))

    def _send(self, turns: Iterable[Turn]) -> None:
        turns = iter(turns)
        while batch := list(islice(turns, BATCH)):
            self._in_line.update((turn.request.request_id, turn) for turn in batch)
            self._place(self._fleet.admit([turn.message for turn in batch]))

    def _place(self, placements: Placements) -> None:
        for request_id, place in placements.items():
            turn = self._in_line.pop(request_id)
            self._engines[place.engine_id].take(turn, place.priority)
