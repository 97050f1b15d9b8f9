"""Carries out swap plans on one worker: a thread per direction, off the engine's own thread.

Owns the order of copies, who waits for whom, and what went wrong. The engine's thread waits for a
copy only if its step reads what the copy brings or writes what it still reads. After the
multithreading swap manager of FastSwitch (arXiv:2411.18424).

A copy that fails is not raised: the engine goes on and computes that KV again. Host blocks that
were not written are remembered until they are, and whatever is loaded from them is failed too.
"""

import heapq
import logging
import os
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from enum import IntEnum
from threading import Condition, Lock, Thread
from time import perf_counter
from typing import Any, Protocol

from kv.copier import Copier
from kv.runs import describe
from kv.swap_plan import BlockCopies, Direction, SwapPlan, Urgency

logger = logging.getLogger(__name__)


class _State(IntEnum):
    BLOCKED = 0  # behind earlier copies that touch the same blocks
    READY = 1
    TAKEN = 2
    BEGUN = 3  # the device can be ordered behind it
    LANDED = 4


@dataclass(eq=False, slots=True)
class CopyJob:
    """Copies of a plan on their way."""

    number: int
    copies: BlockCopies
    urgency: Urgency
    after: Any
    device: frozenset[int]
    host: frozenset[int]
    state: _State = _State.BLOCKED
    followers: list["CopyJob"] = field(default_factory=list)
    awaited: list["CopyJob"] = field(default_factory=list)
    ticket: Any = None
    submitted_s: float = field(default_factory=perf_counter)

    def conflicts_with(self, later: "CopyJob") -> bool:
        """Whether a later copy may not overtake this one: either writes what the other touches."""
        is_same_way = self.copies.direction is later.copies.direction
        is_out = self.copies.direction is Direction.OUT
        if not (is_same_way and is_out) and not self.device.isdisjoint(later.device):
            return True
        return not (is_same_way and not is_out) and not self.host.isdisjoint(later.host)


@dataclass(slots=True)
class SwapReport:
    """What happened on a worker since the last report; blocks, seconds and request ids."""

    landed: set[str] = field(default_factory=set)
    failed_device_blocks: set[int] = field(default_factory=set)
    failed_host_blocks: set[int] = field(default_factory=set)
    descriptors: dict[Direction, int] = field(default_factory=lambda: dict.fromkeys(Direction, 0))
    blocks: dict[Direction, int] = field(default_factory=lambda: dict.fromkeys(Direction, 0))
    busy_s: dict[Direction, float] = field(default_factory=lambda: dict.fromkeys(Direction, 0.0))
    load_waits_s: list[float] = field(default_factory=list)  # of each load, until it landed
    stall_s: float = 0.0
    conflicts: int = 0
    num_pending_blocks: int = 0

    def together_with(self, other: "SwapReport") -> "SwapReport":
        """Of two workers that make the same copies at the same time: the slower one counts."""
        return SwapReport(
            self.landed | other.landed,
            self.failed_device_blocks | other.failed_device_blocks,
            self.failed_host_blocks | other.failed_host_blocks,
            {way: max(self.descriptors[way], other.descriptors[way]) for way in Direction},
            {way: max(self.blocks[way], other.blocks[way]) for way in Direction},
            {way: max(self.busy_s[way], other.busy_s[way]) for way in Direction},
            max(self.load_waits_s, other.load_waits_s, key=sum),
            max(self.stall_s, other.stall_s),
            max(self.conflicts, other.conflicts),
            max(self.num_pending_blocks, other.num_pending_blocks),
        )


class Record(Protocol):
    """Keeps what host memory holds for those who come after this process."""

    def note(self, copies: BlockCopies) -> None:
        """A copy out is whole; told before any other into the same blocks begins."""
        ...

    def close(self) -> None: ...


class SwapManager:
    """The copies of one worker, submitted step by step by the engine's thread."""

    def __init__(
        self,
        copier: Copier,
        *,
        has_threads: bool = True,
        record: Record | None = None,
    ) -> None:
        self._copier = copier
        self._record = record
        self._lock = Lock()
        self._progress = Condition(self._lock)  # a copy has begun or landed
        # One per direction: waking a thread for nothing takes the time of the one that works.
        self._work_is_ready = {direction: Condition(self._lock) for direction in Direction}
        # All below is touched only by who holds the lock.
        self._report = SwapReport()
        self._pending: dict[CopyJob, None] = {}
        self._ready: dict[Direction, list[tuple[Urgency, int, CopyJob]]] = {
            direction: [] for direction in Direction
        }
        self._num_submitted = 0
        self._unwritten_host_blocks: set[int] = set()
        self._is_closed = False
        # A GPU's copies are waited for by a thread of their own, so that the engine's need not.
        self._is_helping = not (has_threads and copier.is_stream_ordered)
        self._threads = [
            Thread(target=self._work, args=(direction,), name=f"kv-{direction.value}", daemon=True)
            for direction in (Direction if has_threads else ())
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, plan: SwapPlan) -> None:
        """Start a step's copies, and hold the step until its forward pass may run.

        Where the device keeps an order of its own, the host only waits until the copies have
        begun.
        """
        if not plan.copies and not self._pending:
            return
        begin_s = perf_counter()
        after = self._copier.mark() if plan.copies else None
        with self._lock:
            jobs = [self._add(copies, after) for copies in plan.copies]
            needed = [job for job in jobs if job.urgency is Urgency.STEP]
            conflicting = self._pending_that_touch(plan.written_blocks, besides=needed)
            self._report.conflicts += bool(conflicting)
            behind = [*needed, *conflicting] if self._threads else list(self._pending)
            for job in behind:
                self._hasten(job)
            mine = self._claim(behind) if self._is_helping else []
            self._call_threads()
        for job in mine:
            self._run(job)
        for job in behind:
            self._order_device_behind(job)
        with self._lock:
            self._report.stall_s += perf_counter() - begin_s

    def take_report(self) -> SwapReport:
        with self._lock:
            report, self._report = self._report, SwapReport()
            report.num_pending_blocks = sum(len(job.copies) for job in self._pending)
            return report

    def drain(self) -> None:
        """Wait until all copies have landed."""
        with self._lock:
            jobs = list(self._pending)
        for job in jobs:
            self._wait_for(job, _State.LANDED)

    def close(self) -> None:
        """Land what was submitted and end the threads."""
        self.drain()
        with self._lock:
            self._is_closed = True
            for condition in self._work_is_ready.values():
                condition.notify()
        for thread in self._threads:
            thread.join()
        if self._record:
            self._record.close()

    # --- with the lock held -----------------------------------------------------------------

    def _add(self, copies: BlockCopies, after: Any) -> CopyJob:
        self._num_submitted += 1
        device, host = frozenset(copies.device_blocks), frozenset(copies.host_blocks)
        job = CopyJob(self._num_submitted, copies, copies.urgency, after, device, host)
        for earlier in self._pending:
            if earlier.conflicts_with(job):
                earlier.followers.append(job)
                job.awaited.append(earlier)
        self._pending[job] = None
        if not job.awaited:
            self._make_ready(job)
        return job

    def _claim(self, jobs: Collection[CopyJob]) -> list[CopyJob]:
        mine = [job for job in jobs if job.state is _State.READY]
        for job in mine:
            job.state = _State.TAKEN
        return mine

    def _first_ready(self, job: CopyJob) -> CopyJob | None:
        """What has to be made next for a copy to land, if this thread may make it."""
        if not self._is_helping:
            return None
        return next((one for one in _with_all_awaited(job) if one.state is _State.READY), None)

    def _make_ready(self, job: CopyJob) -> None:
        job.state = _State.READY
        heapq.heappush(self._ready[job.copies.direction], (job.urgency, job.number, job))

    def _call_threads(self) -> None:
        for direction, condition in self._work_is_ready.items():
            if self._ready[direction]:
                condition.notify()

    def _pending_that_touch(
        self, blocks: Collection[int], besides: Collection[CopyJob]
    ) -> list[CopyJob]:
        if not blocks:
            return []
        return [
            job for job in self._pending if job not in besides and not job.device.isdisjoint(blocks)
        ]

    def _hasten(self, job: CopyJob) -> None:
        """The engine waits: let a copy, and all it waits for, overtake the others."""
        for one in _with_all_awaited(job):
            if one.urgency is not Urgency.STEP:
                one.urgency = Urgency.STEP
                if one.state is _State.READY:
                    self._make_ready(one)  # its older entry is passed over

    def _take(self, direction: Direction) -> CopyJob | None:
        ready = self._ready[direction]
        while ready:
            job = heapq.heappop(ready)[2]
            if job.state is _State.READY:
                job.state = _State.TAKEN
                return job
        return None

    def _land(self, job: CopyJob, num_descriptors: int, busy_s: float, *, is_failed: bool) -> None:
        copies, report = job.copies, self._report
        job.state = _State.LANDED
        del self._pending[job]
        for follower in job.followers:
            follower.awaited.remove(job)
            if not follower.awaited:
                self._make_ready(follower)
        report.descriptors[copies.direction] += num_descriptors
        report.blocks[copies.direction] += len(copies)
        report.busy_s[copies.direction] += busy_s
        if copies.direction is Direction.OUT:
            self._note_out(copies, is_failed=is_failed)
        else:
            self._note_in(copies, is_failed=is_failed)
            report.load_waits_s.append(perf_counter() - job.submitted_s)
        if copies.request_id is not None:
            report.landed.add(copies.request_id)
        self._call_threads()
        self._progress.notify_all()

    def _note_out(self, copies: BlockCopies, *, is_failed: bool) -> None:
        if is_failed:
            self._unwritten_host_blocks.update(copies.host_blocks)
            self._report.failed_host_blocks.update(copies.host_blocks)
        elif self._unwritten_host_blocks:
            self._unwritten_host_blocks.difference_update(copies.host_blocks)

    def _note_in(self, copies: BlockCopies, *, is_failed: bool) -> None:
        if is_failed:
            self._report.failed_device_blocks.update(copies.device_blocks)
            # The copies may be good, but loading them again might fail for ever.
            self._report.failed_host_blocks.update(copies.host_blocks)
        elif self._unwritten_host_blocks:
            self._report.failed_device_blocks.update(
                on_device
                for on_device, on_host in zip(copies.device_blocks, copies.host_blocks, strict=True)
                if on_host in self._unwritten_host_blocks
            )

    # --- without it -------------------------------------------------------------------------

    def _work(self, direction: Direction) -> None:
        """A copying thread's life."""
        _use_all_cores()
        while True:
            with self._lock:
                while (job := self._take(direction)) is None:
                    if self._is_closed:
                        return
                    self._work_is_ready[direction].wait()
            self._run(job)

    def _run(self, job: CopyJob) -> None:
        copies, begin_s, num_descriptors, is_failed = job.copies, perf_counter(), 0, False
        try:
            descriptors = describe(copies.device_blocks, copies.host_blocks)
            num_descriptors = len(descriptors)
            job.ticket = self._copier.begin(copies.direction, descriptors, job.after)
            with self._lock:
                job.state = _State.BEGUN
                self._progress.notify_all()
            self._copier.finish(job.ticket)
            if self._record and copies.direction is Direction.OUT:
                self._record.note(copies)
        except Exception:
            logger.exception(
                "Copying %d blocks %s failed; they will be recomputed",
                len(copies),
                copies.direction.value,
            )
            is_failed = True
        with self._lock:
            self._land(job, num_descriptors, perf_counter() - begin_s, is_failed=is_failed)

    def _order_device_behind(self, job: CopyJob) -> None:
        if not self._copier.is_stream_ordered:
            self._wait_for(job, _State.LANDED)
            return
        self._wait_for(job, _State.BEGUN)
        if job.ticket is not None:
            self._copier.order_device_behind(job.ticket)

    def _wait_for(self, job: CopyJob, state: _State) -> None:
        """Wait for a copy; where that is quicker, by making it, or those it waits for."""
        while True:
            with self._lock:
                if job.state >= state:
                    return
                mine = self._first_ready(job)
                if mine is None:
                    self._progress.wait()
                    continue
                mine.state = _State.TAKEN
            self._run(mine)


def _with_all_awaited(job: CopyJob) -> Iterator[CopyJob]:
    """A copy, those it waits for, those they wait for, and so on: each once."""
    found, unseen = {job}, [job]
    while unseen:
        one = unseen.pop()
        yield one
        fresh = [earlier for earlier in one.awaited if earlier not in found]
        found.update(fresh)
        unseen.extend(fresh)


def _use_all_cores() -> None:
    """Let this thread run where our parent may: engines bind themselves to few cores."""
    with suppress(OSError):
        os.sched_setaffinity(0, os.sched_getaffinity(os.getppid()))
