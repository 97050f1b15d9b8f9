"""The bookkeeping of swaps: what host memory keeps, and what the next step copies."""

import random

from kv.host_pool import HostBlockPool
from kv.swap import BlockCopies, SwapPlan, SwapPlanner

BLOCK_TOKENS = 4


def make_planner(num_host_blocks: int = 8) -> SwapPlanner:
    return SwapPlanner(HostBlockPool(num_host_blocks), BLOCK_TOKENS)


def test_swap_out_covers_the_partly_full_last_block() -> None:
    """Nine tokens in blocks of four are three blocks, however long the block table is."""
    planner = make_planner()

    assert planner.swap_out("a", [10, 11, 12, 13], num_tokens=9)

    assert planner.take_plan().outs.device_blocks == [10, 11, 12]
    assert planner.num_kept_tokens("a") == 9


def test_swap_in_loads_only_what_the_device_has_not() -> None:
    """Tokens that the prefix cache still has are not loaded; the rest goes to its new blocks."""
    planner = make_planner()
    planner.swap_out("a", [10, 11, 12], num_tokens=9)
    [_, *wanted] = planner.take_plan().outs.host_blocks

    planner.swap_in("a", [20, 21, 22, 23], first_token=4, end_token=9)

    assert planner.take_plan() == SwapPlan(ins=BlockCopies([21, 22], wanted))
    assert planner.num_kept_tokens("a") == 0


def test_without_room_nothing_is_kept_and_nothing_planned() -> None:
    """A request that host memory cannot hold whole is not kept at all."""
    planner = make_planner(num_host_blocks=2)

    assert not planner.swap_out("a", [1, 2, 3], num_tokens=9)

    assert planner.take_plan() == SwapPlan()
    assert (planner.num_host_blocks_used, planner.totals.swaps_out) == (0, 0)


def test_blocks_that_a_step_reads_are_not_written_by_the_same_step() -> None:
    """Host blocks of a swap-in become free only once its step's plan has been taken."""
    planner = make_planner(num_host_blocks=2)
    planner.swap_out("a", [1, 2], num_tokens=8)
    planner.take_plan()

    planner.swap_in("a", [3, 4], first_token=0, end_token=7)
    assert not planner.swap_out("b", [5], num_tokens=4)

    planner.take_plan()
    assert planner.swap_out("b", [5], num_tokens=4)


def test_a_copy_dropped_before_its_step_keeps_its_blocks_until_then() -> None:
    """A planned swap-out still runs after an abort, so nobody else may be promised its blocks."""
    planner = make_planner(num_host_blocks=2)
    planner.swap_out("a", [1, 2], num_tokens=8)

    planner.drop("a")
    assert planner.num_host_blocks_used == 0
    assert not planner.swap_out("b", [5], num_tokens=4)

    planner.take_plan()
    assert planner.swap_out("b", [5], num_tokens=4)


def test_copies_of_doubtful_blocks_are_dropped() -> None:
    """When blocks turn out not to have been loaded, copies made from them go, others stay."""
    planner = make_planner()
    planner.swap_out("a", [1, 2], num_tokens=8)
    planner.swap_out("b", [3], num_tokens=4)

    planner.drop_copied_from({2, 9})

    assert (planner.num_kept_tokens("a"), planner.num_kept_tokens("b")) == (0, 4)


def test_random_swaps_bring_every_request_its_own_bytes_back(seed: int) -> None:
    """Random plans, run on two dictionaries for memories, load what each request had stored."""
    world = World(random.Random(seed))
    for step in range(400):
        world.run_step(f"request-{step}")
    world.finish_everything()
    assert world.planner.num_host_blocks_used == 0


class World:
    """An engine of strings: each block holds the name of its request and its place in it."""

    def __init__(self, choose: random.Random) -> None:
        self.planner = make_planner(num_host_blocks=12)
        self._choose = choose
        self._host: dict[int, str] = {}
        self._device: dict[int, str] = {}
        self._free = list(range(16))
        self._running: dict[str, list[int]] = {}
        self._swapped_out: dict[str, int] = {}

    def run_step(self, new_request: str) -> None:
        for request in self._some(self._running):
            self._preempt(request)
        for request in self._some(self._swapped_out):
            self.planner.drop(request)
            del self._swapped_out[request]
        loaded = [one for one in self._some(self._swapped_out) if self._resume(one)]
        blocks = self._take_blocks(self._choose.randrange(1, 5))
        self._carry_out(self.planner.take_plan())
        if blocks:
            self._running[new_request] = blocks
            self._device.update(zip(blocks, self._content(new_request, blocks), strict=True))
        for request in loaded:
            table = self._running[request]
            assert [self._device[block] for block in table] == self._content(request, table)

    def finish_everything(self) -> None:
        for request in self._swapped_out:
            self.planner.drop(request)

    def _some(self, requests: dict[str, list[int]] | dict[str, int]) -> list[str]:
        return self._choose.sample(
            sorted(requests), k=self._choose.randint(0, min(2, len(requests)))
        )

    def _preempt(self, request: str) -> None:
        blocks = self._running.pop(request)
        if self.planner.swap_out(request, blocks, num_tokens=len(blocks) * BLOCK_TOKENS - 1):
            self._swapped_out[request] = len(blocks)
        self._free += blocks  # may be written as soon as the plan's copies have run

    def _resume(self, request: str) -> bool:
        blocks = self._take_blocks(self._swapped_out[request])
        if not blocks:
            return False
        end = self.planner.num_kept_tokens(request)
        self.planner.swap_in(request, blocks, first_token=0, end_token=end)
        del self._swapped_out[request]
        self._running[request] = blocks
        return True

    def _take_blocks(self, num_blocks: int) -> list[int]:
        if num_blocks > len(self._free):
            return []
        return [self._free.pop() for _ in range(num_blocks)]

    def _carry_out(self, plan: SwapPlan) -> None:
        assert len(set(plan.outs.host_blocks)) == len(plan.outs)
        for device_block, host_block in _pairs(plan.outs):
            self._host[host_block] = self._device[device_block]
        for device_block, host_block in _pairs(plan.ins):
            self._device[device_block] = self._host[host_block]

    @staticmethod
    def _content(request: str, blocks: list[int]) -> list[str]:
        return [f"{request}/{index}" for index in range(len(blocks))]


def _pairs(copies: BlockCopies) -> list[tuple[int, int]]:
    return list(zip(copies.device_blocks, copies.host_blocks, strict=True))
