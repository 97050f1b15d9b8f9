"""Carries out swap plans on one worker: a thread per direction, off the engine's own thread.

Owns the order of copies, who waits for whom, and what went wrong. The engine's thread waits for a
copy only if its step reads what the copy brings or writes what it still reads; where the device
keeps an order of its own, until that copy has begun, which it does behind at most one other: were
more handed to the device, an urgent one would come after them all. After the multithreading swap
manager of FastSwitch (arXiv:2411.18424).

A copy that fails is not raised: the engine goes on and computes that KV again. Host blocks that
were not written are remembered until they are, and whatever is loaded from them is failed too. The
same becomes of a neighbour's block that did not come whole, which is no failure. What is sent out
before the planner can have heard of a failed load may have been computed from it, and is not noted.
"""

import heapq
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from enum import IntEnum
from threading import Condition, Lock, Thread
from time import perf_counter
from typing import Any, Protocol

from kv.copier import Copier
from kv.swap_plan import STEPS_IN_FLIGHT, BlockCopies, Direction, SwapPlan, Urgency

logger = logging.getLogger(__name__)

SECONDS_PER_COMPLAINT = 60.0


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
    is_doubtful: bool = False
    submitted_s: float = field(default_factory=perf_counter)

    def conflicts_with(self, later: "CopyJob") -> bool:
        """Whether a later copy may not overtake this one: either writes what the other touches."""
        num_in = [self.copies.direction, later.copies.direction].count(Direction.IN)
        if num_in and not self.device.isdisjoint(later.device):
            return True
        return num_in < 2 and not self.host.isdisjoint(later.host)


@dataclass(slots=True)
class SwapReport:
    """What happened on a worker since the last report; blocks, seconds and request ids."""

    landed: set[str] = field(default_factory=set)
    failed_device_blocks: set[int] = field(default_factory=set)
    failed_host_blocks: set[int] = field(default_factory=set)
    missed_host_blocks: set[int] = field(default_factory=set)  # what a neighbour no longer had
    across: Counter[int] = field(default_factory=Counter)  # copies that are over, by their stamp
    descriptors: dict[Direction, int] = field(default_factory=lambda: dict.fromkeys(Direction, 0))
    blocks: dict[Direction, int] = field(default_factory=lambda: dict.fromkeys(Direction, 0))
    busy_s: dict[Direction, float] = field(default_factory=lambda: dict.fromkeys(Direction, 0.0))
    load_waits_s: list[float] = field(default_factory=list)  # of each load, until it landed
    stall_s: float = 0.0
    conflicts: int = 0
    num_pending_blocks: int = 0

    def besides_counts(self) -> "SwapReport":
        """What one of several workers has to tell beside what the first tells for all.

        They make the same copies, but not in the same step: counted by each, they would count
        again.
        """
        return replace(
            self,
            descriptors=dict.fromkeys(Direction, 0),
            blocks=dict.fromkeys(Direction, 0),
            busy_s=dict.fromkeys(Direction, 0.0),
            load_waits_s=[],
        )

    def together_with(self, other: "SwapReport") -> "SwapReport":
        """Of two workers: the slower one counts, and whatever failed on either."""
        return SwapReport(
            self.landed | other.landed,
            self.failed_device_blocks | other.failed_device_blocks,
            self.failed_host_blocks | other.failed_host_blocks,
            self.missed_host_blocks | other.missed_host_blocks,
            self.across + other.across,
            {way: max(self.descriptors[way], other.descriptors[way]) for way in Direction},
            {way: max(self.blocks[way], other.blocks[way]) for way in Direction},
            {way: max(self.busy_s[way], other.busy_s[way]) for way in Direction},
            max(self.load_waits_s, other.load_waits_s, key=sum),
            max(self.stall_s, other.stall_s),
            max(self.conflicts, other.conflicts),
            max(self.num_pending_blocks, other.num_pending_blocks),
        )


class Record(Protocol):
    """Keeps what host memory holds for those who come after this process, and for neighbours."""

    def note(self, copies: BlockCopies) -> None:
        """A copy out is whole; told before any other into the same blocks begins."""
        ...

    def bring(self, copies: BlockCopies) -> Collection[int]:
        """Copy a neighbour's blocks; the host blocks that hold nothing of use now, if any."""
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
        self._num_doubtful_plans = 0  # to come
        self._is_closed = False
        self._num_failures = 0
        self._silent_until_s = 0.0
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
        begin_s = perf_counter()
        with self._lock:
            self._num_doubtful_plans = max(self._num_doubtful_plans - 1, 0)
            if not plan.copies and not self._pending:
                return
            after = self._copier.mark() if plan.copies else None
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
        job.is_doubtful = self._num_doubtful_plans > 0
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

    def _land(
        self,
        job: CopyJob,
        num_descriptors: int,
        busy_s: float,
        *,
        is_failed: bool,
        missed: Collection[int],
    ) -> None:
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
        if copies.direction is Direction.IN:
            self._note_in(copies, is_failed=is_failed)
            report.load_waits_s.append(perf_counter() - job.submitted_s)
        else:
            self._note_out(copies, is_failed=is_failed)
        if copies.direction is Direction.ACROSS:
            self._unwritten_host_blocks.update(missed)
            report.missed_host_blocks.update(missed)
            report.across[copies.stamp] += 1
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
        if not is_failed and not self._unwritten_host_blocks:
            return
        failed = [
            on_device
            for on_device, on_host in zip(copies.device_blocks, copies.host_blocks, strict=True)
            if is_failed or on_host in self._unwritten_host_blocks
        ]
        if failed:
            self._report.failed_device_blocks.update(failed)
            self._num_doubtful_plans = STEPS_IN_FLIGHT + 1  # the next to come takes one off
        if is_failed:
            # The copies may be good, but loading them again might fail for ever.
            self._report.failed_host_blocks.update(copies.host_blocks)

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
        begin_s, num_descriptors, is_failed = perf_counter(), 0, False
        copies = job.copies
        missed: Collection[int] = ()
        try:
            if copies.direction is Direction.ACROSS:
                assert self._record is not None
                missed = self._record.bring(copies)
            else:
                num_descriptors = self._move(job)
        except Exception as error:  # noqa: BLE001  (a driver's may be any)
            self._tell_of_failure(copies, error)
            is_failed = True
        with self._lock:
            self._land(
                job,
                num_descriptors,
                perf_counter() - begin_s,
                is_failed=is_failed,
                missed=missed,
            )

    def _tell_of_failure(self, copies: BlockCopies, error: Exception) -> None:
        """Log it, unless another was logged just now: where one copy fails, all may."""
        with self._lock:
            self._num_failures += 1
            number, now_s = self._num_failures, perf_counter()
            if now_s < self._silent_until_s:
                return
            self._silent_until_s = now_s + SECONDS_PER_COMPLAINT
        logger.error(
            "Copying %d blocks %s failed, as %d copies before; what they held is recomputed",
            len(copies),
            copies.direction.value,
            number - 1,
            exc_info=error,
        )

    def _move(self, job: CopyJob) -> int:
        """Copy between device and host; in how many pieces."""
        copies = job.copies
        descriptors = self._copier.pieces(copies.device_blocks, copies.host_blocks)
        job.ticket = self._copier.begin(copies.direction, descriptors, job.after)
        with self._lock:
            job.state = _State.BEGUN
            self._progress.notify_all()
        self._copier.finish(job.ticket)
        if self._record and copies.direction is Direction.OUT and not job.is_doubtful:
            self._record.note(copies)
        return len(descriptors)

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
