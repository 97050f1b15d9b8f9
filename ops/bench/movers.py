"""Three ways to move KV between device and host memory, for ``bench swap`` to compare.

Owns the memory they move it in: rows of blocks, layer after layer, as the connector finds them in
the engine. ``ManagedMover`` is what the engine has. ``PlainMover`` makes one copy of as many bytes
in each direction, the most that the machine can do. ``BlockwiseMover`` makes one copy per block
and layer while its caller waits. Each call returns when all has landed.
"""

from concurrent.futures import ThreadPoolExecutor
from time import perf_counter
from typing import Protocol

import numpy as np
import torch

from kv.copier import BlockwiseCopier, CpuCopier
from kv.host_memory import allocate
from kv.layout import Placement, block_rows
from kv.runs import describe
from kv.swap_manager import SwapManager
from kv.swap_plan import BlockCopies, Direction, SwapPlan


class KVMemory:
    """KV of a device and of a host, every page of it touched."""

    def __init__(self, *, num_layers: int, row_bytes: int, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.block_bytes = num_layers * row_bytes
        self.device = torch.full((num_layers * num_blocks * row_bytes,), 1, dtype=torch.uint8)
        names = tuple(f"layer {number}" for number in range(num_layers))
        place = Placement(names, 0, layer_stride=num_blocks * row_bytes, block_stride=row_bytes)
        self.device_rows = block_rows(self.device, [place], num_blocks)
        self.host_rows = allocate(self.device_rows, num_blocks)
        for rows in self.host_rows.values():
            rows.zero_()


class Mover(Protocol):
    """Makes all copies of a plan."""

    def move(self, plan: SwapPlan) -> None: ...


class ManagedMover:
    """The swap manager on runs of blocks: a thread per direction."""

    def __init__(self, memory: KVMemory) -> None:
        self._manager = SwapManager(CpuCopier(memory.device_rows, memory.host_rows))
        self.dispatch_s = 0.0  # of the last move: how long its caller was kept by handing it over

    def move(self, plan: SwapPlan) -> None:
        begin_s = perf_counter()
        self._manager.submit(plan)
        self.dispatch_s = perf_counter() - begin_s
        self._manager.drain()

    def close(self) -> None:
        self._manager.close()


class PlainMover:
    """One contiguous copy for each of a plan's, of as many bytes; two at once where it has two."""

    def __init__(self, memory: KVMemory) -> None:
        self._block_bytes = memory.block_bytes
        self._device = memory.device.numpy()
        self._host = np.full_like(self._device, 0)  # touches every page
        self._thread = ThreadPoolExecutor(1)

    def move(self, plan: SwapPlan) -> None:
        first, *others = plan.copies
        beside = [self._thread.submit(self._copy, one) for one in others]
        self._copy(first)
        for one in beside:
            one.result()

    def close(self) -> None:
        self._thread.shutdown()

    def _copy(self, copies: BlockCopies) -> None:
        size = len(copies) * self._block_bytes
        # Somewhere else each time, as blocks are: a cache that holds the bytes is not memory.
        latest = self._device.size - size
        begin = min(copies.device_blocks[0] * self._block_bytes, latest)
        source, target = self._device, self._host
        if copies.direction is Direction.IN:
            source, target = target, source
        np.copyto(target[begin : begin + size], source[begin : begin + size])


class BlockwiseMover:
    """Block by block, one copy after the other."""

    def __init__(self, memory: KVMemory) -> None:
        self._copier = BlockwiseCopier(memory.device_rows, memory.host_rows)

    def move(self, plan: SwapPlan) -> None:
        for copies in plan.copies:
            descriptors = describe(copies.device_blocks, copies.host_blocks)
            self._copier.begin(copies.direction, descriptors)
