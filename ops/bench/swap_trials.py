"""Swaps of requests of one size, timed: every way by every mover, in turns.

Owns choosing which blocks move and holding the clock; what moves them is ``ops.bench.movers``.
"""

from collections.abc import Callable
from contextlib import closing
from random import Random
from time import perf_counter

from app.errors import UsageError
from kv.block_groups import BlockGroupPool
from kv.host_memory import GIB, free_bytes
from kv.runs import describe
from kv.single_blocks import SingleBlockPool
from kv.swap_plan import DEVICE_WAYS, BlockCopies, Direction, SwapPlan, Urgency
from ops.bench.churn import Pool, churned
from ops.bench.movers import BlockwiseMover, KVMemory, ManagedMover, Mover, PlainMover
from ops.bench.swap_times import (
    BLOCKWISE,
    CEILING,
    DUPLEX,
    FASTSWITCH,
    IN,
    OUT,
    WAYS,
    SwapShape,
    SwapTimes,
)

WARM_UPS = 2
_NUM_MEMORIES = 3  # the device's, the host's, and the plain copy's host's


class Requests:
    """Where the blocks of some requests lie in a device's and a host's pool, after churn."""

    def __init__(
        self, make_pool: Callable[[str, int], Pool], shape: SwapShape, random: Random
    ) -> None:
        self._random = random
        self._device, self._host = (
            churned(make_pool(name, shape.pool_blocks), shape.num_blocks, shape.pool_use, random)
            for name in ("device", "host")
        )

    def plan(self, way: str) -> SwapPlan:
        """One request out or in; for duplex one out and another in."""
        directions = {OUT: [Direction.OUT], IN: [Direction.IN], DUPLEX: DEVICE_WAYS}[way]
        device = self._random.sample(self._device, len(directions))
        host = self._random.sample(self._host, len(directions))
        return SwapPlan(
            [
                BlockCopies(direction, Urgency.REQUEST, device_blocks, host_blocks)
                for direction, device_blocks, host_blocks in zip(
                    directions, device, host, strict=True
                )
            ]
        )


def time_swaps(shape: SwapShape, repeats: int, seed: str) -> SwapTimes:
    """``repeats`` swaps of each kind.

    Raises:
        UsageError: the machine has too little memory free for pools of that size.
    """
    _check_memory(shape)
    memory = KVMemory(
        num_layers=shape.num_layers, row_bytes=shape.row_bytes, num_blocks=shape.pool_blocks
    )
    in_groups = Requests(BlockGroupPool, shape, Random(seed))
    one_by_one = Requests(SingleBlockPool, shape, Random(seed))
    times = SwapTimes(shape)
    with closing(ManagedMover(memory)) as managed, closing(PlainMover(memory)) as plain:
        movers: dict[str, tuple[Mover, Requests]] = {
            FASTSWITCH: (managed, in_groups),
            CEILING: (plain, in_groups),
            BLOCKWISE: (BlockwiseMover(memory), one_by_one),
        }
        for number in range(-WARM_UPS, repeats):
            for way in WAYS:
                for name, (mover, requests) in movers.items():
                    plan = requests.plan(way)
                    begin_s = perf_counter()
                    mover.move(plan)
                    took_s = perf_counter() - begin_s
                    if number < 0:
                        continue
                    times.seconds.setdefault((name, way), []).append(took_s)
                    if name == FASTSWITCH and way != DUPLEX:
                        times.dispatches_s.append(managed.dispatch_s)
                        times.num_descriptors.append(_num_descriptors(plan))
    return times


def _check_memory(shape: SwapShape) -> None:
    wanted = _NUM_MEMORIES * shape.pool_blocks * shape.num_layers * shape.row_bytes
    if wanted > free_bytes():
        raise UsageError(
            f"swaps of {shape.num_blocks} blocks need {wanted / GIB:.1f} GiB, "
            f"{free_bytes() / GIB:.1f} are free: choose fewer tokens, layers or smaller blocks"
        )


def _num_descriptors(plan: SwapPlan) -> int:
    return sum(len(describe(one.device_blocks, one.host_blocks)) for one in plan.copies)
