"""A fleet scheduler in a process of its own, as in the router, with its calls timed.

Owns the process and its timers. The load lives in the caller's process, so that neither its
memory nor its garbage is counted as the router's; what crosses is encoded as it is from gateways
and engines, and decoded here.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from multiprocessing.managers import BaseManager
from random import Random
from time import perf_counter, thread_time
from typing import TypeVar

import msgspec
import psutil

from app.build import new_fleet
from app.settings import FairnessSettings
from deployments.messages import Admit, Report, Request, request_decoder
from deployments.steady_heap import settle_heap
from ops.bench.memory import MIB
from ops.bench.router_times import RouterTimes, Took
from scheduler.admission import EngineCapacity, Placement

# By engine and request, by request.
Orders = Mapping[str, Mapping[str, int]]
Placements = Mapping[str, Placement]
Call = TypeVar("Call", bound=Request)
Result = TypeVar("Result")


class TimedFleet:
    """The settings' defaults under one policy. The fleet's clock stands still between rounds."""

    def __init__(self, policy: str, seed: str) -> None:
        settle_heap()  # as the router does
        settings = FairnessSettings(policy=policy)
        self._update_s = settings.update_s
        self._clock_s = 0.0
        self._fleet = new_fleet(settings, clock=lambda: self._clock_s, random=Random(seed))
        self._empty_bytes = _rss_bytes()
        self._engine_ids: list[str] = []
        self._times = RouterTimes()

    def join(self, engine_id: str, capacity: EngineCapacity, report: bytes) -> None:
        self._fleet.join(engine_id, capacity)
        self._fleet.on_report(engine_id, _decode(report, Report).progress)
        self._engine_ids.append(engine_id)

    def admit(self, messages: Sequence[bytes]) -> Placements:
        """Who has a place now, of these requests and of those in line."""
        placements = {}
        for message in messages:
            request = _decode(message, Admit).request
            place = _timed(partial(self._fleet.admit, request), self._times.admissions)
            if place is not None:
                placements[request.request_id] = place
            placements.update(self._fleet.take_called())
        return placements

    def pass_by(self, messages: Sequence[bytes]) -> None:
        """Requests that came and went before anybody measured: what is left are memories."""
        for message in messages:
            request = _decode(message, Admit).request
            self._fleet.admit(request)
            self._fleet.cancel(request.request_id)

    def update(self, reports: Sequence[bytes]) -> tuple[Orders, Placements]:
        """An update period passes: all engines report, then all priorities are found anew."""
        placements: dict[str, Placement] = {}
        for message in reports:
            placements |= _timed(partial(self._take_report, message), self._times.reports)
        self._clock_s += self._update_s
        return _timed(self._rerank, self._times.reranks), placements | self._fleet.take_called()

    def checkpoint(self) -> None:
        """What engines are given to keep for the next router, made and thrown away."""
        _timed(lambda: msgspec.msgpack.encode(self._fleet.checkpoint()), self._times.checkpoints)

    def snapshot(self) -> None:
        """What ``GET /v1/fairness`` shows, made and thrown away."""
        _timed(lambda: msgspec.json.encode(self._fleet.snapshot()), self._times.snapshots)

    def take_times(self) -> RouterTimes:
        """What was timed since the last call."""
        times, self._times = self._times, RouterTimes()
        return times

    def rss_mb(self) -> float:
        """MiB that this process holds above what it held when its fleet was empty."""
        return (_rss_bytes() - self._empty_bytes) / MIB

    def _take_report(self, message: bytes) -> Placements:
        report = _decode(message, Report)
        self._fleet.on_report(report.engine_id, report.progress)
        return self._fleet.take_called()

    def _rerank(self) -> Orders:
        # The first engine's turn is when all are ranked.
        return {
            engine_id: self._fleet.priority_changes(engine_id) for engine_id in self._engine_ids
        }


@contextmanager
def timed_fleet(policy: str, seed: str) -> Iterator[TimedFleet]:
    """A fleet in a new process that ends on leaving."""
    manager = _Manager(ctx=get_context("spawn"))
    with manager:
        yield manager.TimedFleet(policy, seed)  # type: ignore[attr-defined]  # made by `register`


class _Manager(BaseManager):
    """Starts the process and carries calls to it."""


_Manager.register("TimedFleet", TimedFleet)


def _decode(message: bytes, kind: type[Call]) -> Call:
    decoded = request_decoder.decode(message)
    assert isinstance(decoded, kind)
    return decoded


def _timed(call: Callable[[], Result], kept: list[Took]) -> Result:
    wall_s, cpu_s = perf_counter(), thread_time()
    result = call()
    kept.append(Took(perf_counter() - wall_s, thread_time() - cpu_s))
    return result


def _rss_bytes() -> int:
    return int(psutil.Process().memory_info().rss)
