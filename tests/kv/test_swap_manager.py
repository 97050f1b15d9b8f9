"""Copies off the engine's thread: who waits for whom, and what happens when one fails."""

import threading
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from kv.copier import CpuCopier
from kv.runs import Descriptor
from kv.swap_manager import SwapManager, SwapReport
from kv.swap_plan import (
    STEPS_IN_FLIGHT,
    BlockCopies,
    Direction,
    NeighbourBlocks,
    SwapPlan,
    Urgency,
)

NUM_BLOCKS = 8


class GatedCopier(CpuCopier):
    """Copies of the copying threads wait at a gate; the engine's own thread passes."""

    def __init__(self, device: torch.Tensor, host: torch.Tensor) -> None:
        super().__init__({"layer": device}, {"layer": host})
        self.gate = threading.Event()
        self.has_arrived = threading.Semaphore(0)
        self.order: list[int] = []  # device blocks that copies began with
        self.threads: list[str] = []
        self.failing: set[int] = set()  # device blocks

    def begin(
        self, direction: Direction, descriptors: Sequence[Descriptor], after: None = None
    ) -> None:
        if threading.current_thread() is not threading.main_thread():
            self.has_arrived.release()
            self.gate.wait()
        self.order.append(descriptors[0].device_start)
        self.threads.append(threading.current_thread().name)
        if descriptors[0].device_start in self.failing:
            message = "injected"
            raise RuntimeError(message)
        super().begin(direction, descriptors, after)


class StreamCopier(CpuCopier):
    """As a device with an order of its own: begun at once, landed when the gate lets it."""

    is_stream_ordered = True

    def __init__(self, device: torch.Tensor, host: torch.Tensor) -> None:
        super().__init__({"layer": device}, {"layer": host})
        self.gate = threading.Event()
        self.ordered: list[tuple[Direction, int]] = []  # way and device block of the first piece

    def begin(
        self, direction: Direction, descriptors: Sequence[Descriptor], after: None = None
    ) -> Any:
        return direction, descriptors

    def finish(self, ticket: Any) -> None:
        self.gate.wait()
        super().begin(*ticket)

    def order_device_behind(self, ticket: Any) -> None:
        direction, descriptors = ticket
        self.ordered.append((direction, descriptors[0].device_start))


class ListRecord:
    """What it was told of, by stamp, with what the blocks held by then."""

    def __init__(self, host: torch.Tensor) -> None:
        self.noted: list[tuple[int, list[int]]] = []
        self.is_closed = False
        self.gone: set[int] = set()
        self._host = host

    def note(self, copies: BlockCopies) -> None:
        self.noted.append((copies.stamp, self._host[copies.host_blocks, 0].tolist()))

    def bring(self, copies: BlockCopies) -> Collection[int]:
        """The neighbour's block n holds 200 + n; what is ``gone`` does not come."""
        assert copies.source is not None
        for block, target in zip(copies.source.blocks, copies.host_blocks, strict=True):
            if target not in self.gone:
                self._host[target] = 200 + block
        return self.gone & {*copies.host_blocks}

    def close(self) -> None:
        self.is_closed = True


class Bench:
    """A manager on memory whose device blocks hold their number + 1, host blocks 100 more."""

    def __init__(self, copier: Any = None, *, has_threads: bool = True) -> None:
        self.device = self._rows(1)
        self.host = self._rows(101)
        self.copier: Any = (copier or GatedCopier)(self.device, self.host)
        self.record = ListRecord(self.host)
        self.manager = SwapManager(self.copier, has_threads=has_threads, record=self.record)

    def submit(self, *copies: BlockCopies, written: Sequence[int] = ()) -> None:
        self.manager.submit(SwapPlan(list(copies), written))

    def hold(self, *copies: BlockCopies) -> None:
        """Submit copies, each of which a copying thread begins and none completes."""
        self.submit(*copies)
        for _ in copies:
            assert self.copier.has_arrived.acquire(timeout=30)

    def land_all(self) -> SwapReport:
        self.copier.gate.set()
        self.manager.drain()
        return self.manager.take_report()

    @staticmethod
    def _rows(first: int) -> torch.Tensor:
        return torch.arange(first, first + NUM_BLOCKS, dtype=torch.uint8)[:, None].repeat(1, 4)


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.copier.gate.set()
    bench.manager.close()


def out(device: list[int], host: list[int], urgency: Urgency = Urgency.NOBODY_YET) -> BlockCopies:
    return BlockCopies(Direction.OUT, urgency, device, host)


def into(
    device: list[int], host: list[int], urgency: Urgency = Urgency.STEP, name: str | None = None
) -> BlockCopies:
    return BlockCopies(Direction.IN, urgency, device, host, name)


def value(rows: torch.Tensor, block: int) -> int:
    return int(rows[block, 0])


def test_a_step_goes_on_beside_copies_that_it_does_not_touch(bench: Bench) -> None:
    """A swap-out held up in its thread does not keep a step that writes other blocks."""
    bench.hold(out([0], [0]))

    bench.submit(written=[5])

    report = bench.manager.take_report()
    assert (report.conflicts, report.num_pending_blocks) == (0, 1)
    assert bench.land_all().blocks[Direction.OUT] == 1
    assert value(bench.host, 0) == 1


def test_a_step_waits_for_the_copy_that_reads_what_it_writes(bench: Bench) -> None:
    """And for no other: the engine's thread makes that copy itself if nobody has begun it."""
    bench.hold(out([0], [0]))
    bench.submit(out([1], [1]), out([2], [2]))

    bench.submit(written=[2])

    assert bench.copier.order == [2]
    assert value(bench.host, 2) == 3
    report = bench.manager.take_report()
    assert (report.conflicts, report.num_pending_blocks) == (1, 2)
    assert report.stall_s > 0


def test_what_the_step_reads_is_there_before_it(bench: Bench) -> None:
    """A load that the step waits for has landed when the plan has been submitted."""
    bench.submit(into([3], [4]))

    assert value(bench.device, 3) == 105


def test_a_copy_out_is_recorded_once_it_is_whole_and_before_the_next(bench: Bench) -> None:
    """With what it has brought; loads and copies that failed are not."""
    bench.copier.failing.add(2)
    bench.hold(replace(out([0], [4]), stamp=7))

    bench.submit(replace(out([1], [4]), stamp=8), replace(out([2], [5]), stamp=9), into([6], [7]))
    assert bench.record.noted == []

    bench.land_all()
    assert bench.record.noted == [(7, [1]), (8, [2])]
    bench.manager.close()
    assert bench.record.is_closed


def test_a_load_beside_the_step_is_told_when_it_has_landed(bench: Bench) -> None:
    """Not before: the request would run on KV that is not there."""
    bench.hold(into([3], [4], Urgency.REQUEST, "a"))
    assert bench.manager.take_report().landed == set()

    report = bench.land_all()
    assert report.landed == {"a"}
    assert len(report.load_waits_s) == 1
    assert value(bench.device, 3) == 105


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (out([0], [0]), into([5], [0])),
        (into([0], [0], Urgency.REQUEST), out([0], [5])),
        (into([5], [0], Urgency.REQUEST), out([1], [0])),
        (out([1], [0]), into([1], [5])),
        (out([1], [0]), out([2], [0])),
        (into([1], [0], Urgency.REQUEST), into([1], [2])),
    ],
    ids=[
        "loads what was just saved",
        "saves what was just loaded",
        "overwrites what is being loaded",
        "loads over what is being saved",
        "saves over a save",
        "loads over a load",
    ],
)
def test_copies_of_the_same_blocks_keep_their_order(
    bench: Bench, first: BlockCopies, then: BlockCopies
) -> None:
    """Whatever is held up, the outcome is that of one after the other."""
    expected = Bench(has_threads=False)
    expected.submit(first)
    expected.submit(then)

    bench.hold(first)
    later = BlockCopies(then.direction, Urgency.NOBODY, then.device_blocks, then.host_blocks)
    bench.submit(later)
    bench.land_all()

    assert torch.equal(bench.device, expected.device)
    assert torch.equal(bench.host, expected.host)


def test_the_more_urgent_copy_overtakes(bench: Bench) -> None:
    """Copies that nobody waits for come last, however early they were asked for."""
    bench.hold(out([0], [0]))
    bench.submit(out([1], [1], Urgency.NOBODY), out([2], [2], Urgency.NOBODY_YET))

    bench.land_all()

    assert bench.copier.order == [0, 2, 1]


def test_both_directions_move_at_once(bench: Bench) -> None:
    """A load has a thread of its own, whatever is being saved."""
    bench.hold(out([0], [0]), into([1], [1], Urgency.REQUEST))

    bench.land_all()

    assert sorted(bench.copier.threads) == ["kv-in", "kv-out"]


def test_without_threads_all_is_done_on_return() -> None:
    """The blocking mode: every copy is made, in order, by the engine's own thread."""
    bench = Bench(has_threads=False)

    bench.submit(out([0], [0], Urgency.NOBODY), into([3], [0], Urgency.REQUEST, "a"))

    assert value(bench.device, 3) == 1
    report = bench.manager.take_report()
    assert report.landed == {"a"}
    assert report.num_pending_blocks == 0
    bench.manager.close()


def test_a_failed_save_fails_what_is_loaded_from_it(bench: Bench) -> None:
    """Until the host block has been written by a copy that succeeds."""
    bench.copier.gate.set()
    bench.copier.failing = {0}
    bench.submit(out([0], [0]))
    assert bench.land_all().failed_host_blocks == {0}

    bench.copier.failing = set()
    bench.submit(into([4], [0]), into([5], [1]))
    assert bench.manager.take_report().failed_device_blocks == {4}

    bench.submit(out([6], [0]), into([4], [0]))
    assert bench.manager.take_report().failed_device_blocks == set()


def test_what_may_build_on_a_failed_load_is_not_noted(bench: Bench) -> None:
    """Nobody else is to find it until the planner has heard of the failure, and forgotten it."""
    bench.copier.gate.set()
    bench.copier.failing = {2}
    bench.submit(into([2], [0]))
    bench.copier.failing = set()

    for block in range(3, 3 + STEPS_IN_FLIGHT + 1):
        bench.submit(out([block], [block], Urgency.STEP))

    assert [blocks for _, blocks in bench.record.noted] == [[3 + STEPS_IN_FLIGHT + 1]]


def test_a_failed_load_is_told_with_its_request(bench: Bench) -> None:
    """The request has landed and its block has failed, in one report."""
    bench.copier.gate.set()
    bench.copier.failing = {2}
    bench.submit(into([2], [0], Urgency.REQUEST, "a"))

    report = bench.land_all()

    assert (report.landed, report.failed_device_blocks) == ({"a"}, {2})
    assert report.failed_host_blocks == {0}  # not offered again, or it might fail for ever


def across(blocks: list[int], host: list[int]) -> BlockCopies:
    source = NeighbourBlocks("neighbour", 1, blocks, [7] * len(blocks))
    return BlockCopies(Direction.ACROSS, Urgency.REQUEST, [], host, stamp=9, source=source)


def test_what_is_loaded_waits_for_what_comes_from_a_neighbour(bench: Bench) -> None:
    """The host block that is read has the neighbour's content by then, and its end is told."""
    bench.copier.gate.set()
    bench.submit(across([5], [2]), into([4], [2]))

    assert value(bench.device, 4) == 205
    report = bench.land_all()
    assert (report.across, report.missed_host_blocks) == ({9: 1}, set())
    assert (report.failed_host_blocks, report.failed_device_blocks) == (set(), set())


def test_what_a_neighbour_no_longer_had_fails_what_is_loaded_from_it(bench: Bench) -> None:
    """And nothing else; it is told, and is no failed copy."""
    bench.copier.gate.set()
    bench.record.gone = {3}
    bench.submit(across([5, 6], [2, 3]), into([4, 7], [2, 3]))

    report = bench.land_all()

    assert (report.across, report.missed_host_blocks) == ({9: 1}, {3})
    assert (report.failed_host_blocks, report.failed_device_blocks) == (set(), {7})
    assert value(bench.device, 4) == 205


def test_a_block_that_comes_across_is_not_written_while_it_is_sent_elsewhere(
    bench: Bench,
) -> None:
    """Copies into and out of one host block keep their order, whichever way they go."""
    bench.hold(into([4], [2], Urgency.REQUEST, "a"))
    bench.submit(across([5], [2]), across([6], [2]))

    bench.land_all()

    assert (value(bench.device, 4), value(bench.host, 2)) == (103, 206)


def test_neighbours_move_in_one_piece(bench: Bench) -> None:
    """Descriptors are counted as the runs that lie side by side on both sides."""
    bench.copier.gate.set()
    bench.submit(out([0, 1, 2, 5], [4, 5, 6, 0]))

    report = bench.land_all()

    assert report.descriptors[Direction.OUT] == 2
    assert report.blocks[Direction.OUT] == 4


def test_a_device_with_an_order_of_its_own_waits_itself() -> None:
    """The engine's thread goes on once what its step reads, or writes over, has begun."""
    bench = Bench(StreamCopier)

    bench.submit(out([0], [0]), written=[5])
    bench.submit(into([4], [2]), written=[0])

    assert bench.copier.ordered == [(Direction.IN, 4), (Direction.OUT, 0)]
    assert value(bench.device, 4) == 5  # nothing has landed yet
    report = bench.land_all()
    bench.manager.close()
    assert (value(bench.device, 4), value(bench.host, 0)) == (103, 1)
    assert report.conflicts == 1


def test_failures_are_told_of_once_in_a_while(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """Where one copy fails, all may; the metric counts each."""
    bench.copier.gate.set()
    bench.copier.failing = {0, 1, 2}

    for block in range(3):
        bench.submit(out([block], [block]))
    report = bench.land_all()

    assert report.failed_host_blocks == {0, 1, 2}
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_a_copy_that_fails_as_it_lands_is_computed_again() -> None:
    """The device was put behind it already; the next report says which blocks are wrong."""
    bench = Bench(StreamCopier)
    bench.copier.gate.set()
    bench.copier.finish = lambda _ticket: 1 / 0

    bench.submit(into([4, 5], [2, 3]))
    report = bench.land_all()
    bench.manager.close()

    assert report.failed_device_blocks == {4, 5}
    assert report.failed_host_blocks == {2, 3}


def test_of_two_workers_the_slower_counts() -> None:
    """They make the same copies at the same time; what failed on one has failed."""
    one = SwapReport(landed={"a"}, failed_host_blocks={1}, stall_s=0.5)
    two = SwapReport(landed={"a"}, failed_host_blocks={2}, stall_s=0.2)
    one.blocks[Direction.IN] = two.blocks[Direction.IN] = 3

    both: Any = one.together_with(two)

    assert (both.failed_host_blocks, both.stall_s, both.blocks[Direction.IN]) == ({1, 2}, 0.5, 3)
