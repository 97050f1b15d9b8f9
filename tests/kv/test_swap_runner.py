"""Plans carried out on a worker, also when copies fail."""

import pytest

from kv.swap import BlockCopies
from kv.swap_runner import SwapRunner


class FakeCopier:
    """Notes what it is asked to copy; fails while ``is_broken``."""

    def __init__(self) -> None:
        self.is_broken = False
        self.done: list[tuple[str, list[int]]] = []

    def copy_out(self, copies: BlockCopies) -> None:
        self._copy("out", copies)

    def copy_in(self, copies: BlockCopies) -> None:
        self._copy("in", copies)

    def take_busy_s(self) -> float:
        return 0.5

    def _copy(self, direction: str, copies: BlockCopies) -> None:
        if self.is_broken:
            message = "the bus fell off"
            raise RuntimeError(message)
        self.done.append((direction, copies.device_blocks))


@pytest.fixture
def copier() -> FakeCopier:
    return FakeCopier()


@pytest.fixture
def runner(copier: FakeCopier) -> SwapRunner:
    return SwapRunner(copier)


def test_an_empty_plan_costs_nothing(copier: FakeCopier, runner: SwapRunner) -> None:
    """Steps without swaps do not touch the copier."""
    runner.run_outs(BlockCopies())
    runner.run_ins(BlockCopies())

    assert copier.done == []


def test_a_failed_load_names_its_blocks_once(copier: FakeCopier, runner: SwapRunner) -> None:
    """Every block of a load that failed is reported, with the step it belongs to."""
    copier.is_broken = True

    runner.run_ins(BlockCopies([4, 5], [0, 1]))

    assert runner.take_failed_device_blocks() == {4, 5}
    assert runner.take_failed_device_blocks() == set()


def test_loading_what_was_never_written_is_a_failure(
    copier: FakeCopier, runner: SwapRunner
) -> None:
    """After a failed swap-out its host blocks hold somebody's old bytes: loads of them fail."""
    copier.is_broken = True
    runner.run_outs(BlockCopies([4, 5], [0, 1]))
    copier.is_broken = False

    runner.run_ins(BlockCopies([7, 8, 9], [1, 2, 3]))

    assert runner.take_failed_device_blocks() == {7}


def test_a_host_block_written_again_is_good_again(copier: FakeCopier, runner: SwapRunner) -> None:
    """The next swap-out that succeeds makes a host block fit to load from."""
    copier.is_broken = True
    runner.run_outs(BlockCopies([4], [0]))
    copier.is_broken = False
    runner.run_outs(BlockCopies([6], [0]))

    runner.run_ins(BlockCopies([7], [0]))

    assert runner.take_failed_device_blocks() == set()
