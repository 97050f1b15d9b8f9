"""An engine's planner and worker on a pool, copying without an end: to be killed at any moment.

Run as ``python -m tests.kv.pool_program FOLDER``. The bytes of a block are those of its key again
and again, in every layer.
"""

import sys
from hashlib import sha256
from itertools import count
from pathlib import Path
from random import Random

import numpy as np
import torch

from kv.block_groups import BlockGroupPool
from kv.copier import CpuCopier
from kv.host_cache import HostCache
from kv.settings import PoolPlace
from kv.shared_host import OpenedIndex, SharedRows, open_index
from kv.swap_manager import SwapManager
from kv.swap_plan import BlockCopies, Direction, SwapPlan, Urgency

FACTS = b"a model"
NUM_DEVICE_BLOCKS, NUM_HOST_BLOCKS, ROW_BYTES, KEY_BYTES = 16, 64, 2**16, 32
LAYERS = ("first", "second")
NUM_KEYS = 200


def device_rows() -> dict[str, torch.Tensor]:
    return {name: torch.zeros((NUM_DEVICE_BLOCKS, ROW_BYTES), dtype=torch.uint8) for name in LAYERS}


def open_pool(folder: Path, life: int) -> tuple[SharedRows, OpenedIndex]:
    """As an engine does at its start: the worker first, then the planner."""
    place = PoolPlace(folder, life)
    rows = SharedRows(place, 0, FACTS, device_rows(), NUM_HOST_BLOCKS, host_kv_gib=0.01)
    rows.declare_ready()
    opened = open_index(
        place, FACTS, num_ranks=1, num_host_blocks=NUM_HOST_BLOCKS, key_bytes=KEY_BYTES
    )
    assert opened is not None
    return rows, opened


def content(key: bytes) -> np.ndarray:
    return np.tile(np.frombuffer(key, dtype=np.uint8), ROW_BYTES // KEY_BYTES)


def copy_for_ever(folder: Path) -> None:
    rows, opened = open_pool(folder, life=1)
    cache = HostCache(BlockGroupPool("host", NUM_HOST_BLOCKS), opened.index)
    cache.adopt(opened.held, priority=1)
    device = device_rows()
    manager = SwapManager(CpuCopier(device, rows.rows), record=rows)
    choose = Random()
    for step in count():
        keys = [sha256(b"%d" % choose.randrange(NUM_KEYS)).digest() for _ in range(4)]
        fresh = [key for key in dict.fromkeys(keys) if cache.find(key) is None]
        first = step % 4 * 4
        sources = list(range(first, first + len(fresh)))
        manager.submit(SwapPlan(written_blocks=sources))  # what is copied from them is whole
        for source, key in zip(sources, fresh, strict=True):
            for layer in device.values():
                layer[source] = torch.from_numpy(content(key))
        targets = cache.put(fresh)
        copies = BlockCopies(
            Direction.OUT, Urgency.NOBODY, sources, targets, stamp=cache.last_stamp
        )
        manager.submit(SwapPlan([copies] if fresh else []))
        cache.spare(targets, 0)
        if step % 20 == 0:
            print("going on", flush=True)


if __name__ == "__main__":
    copy_for_ever(Path(sys.argv[1]))
