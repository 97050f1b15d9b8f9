"""Hands vLLM runs of neighbouring blocks: an exchange for its queue of free blocks.

Owns the translation between vLLM's block objects and ``kv.device_queue``, and learning who asks:
vLLM's queue is not told, so the managers that ask on a request's behalf say so first. What is
leaned on is pinned by ``tests/kv/test_vllm_free_queue.py``.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import KVCacheBlock

from kv.device_queue import BLOCKS_PER_WINDOW_BLOCK, DeviceBlockQueue

_ASKING = ("allocate_new_blocks", "allocate_external_computed_blocks")


class GroupedFreeQueue:
    """What vLLM's block pool uses of a queue of free blocks.

    ``num_free_blocks`` is a plain number, since vLLM reads it for every request of every step.
    """

    def __init__(self, blocks: Sequence[KVCacheBlock], free: Iterable[KVCacheBlock]) -> None:
        """``blocks`` are all of a pool, by their ids; ``free`` are blank."""
        self._blocks = blocks
        self._queue = DeviceBlockQueue(len(blocks), len(blocks) // BLOCKS_PER_WINDOW_BLOCK)
        for block in {*range(len(blocks))}.difference(block.block_id for block in free):
            self._queue.find(block)
        self.num_free_blocks = self._queue.num_free
        self._tables: Mapping[str, Sequence[KVCacheBlock]] = {}
        self._request_id = ""

    def ask_as(self, request_id: str, tables: Mapping[str, Sequence[KVCacheBlock]]) -> None:
        """Say for whom the next blocks are, and where their block table is."""
        self._request_id, self._tables = request_id, tables

    def popleft_n(self, n: int) -> list[KVCacheBlock]:
        table = self._tables.get(self._request_id)
        after = table[-1].block_id if table else None
        taken = self._queue.take(n, after=after)
        self.num_free_blocks -= n
        blocks = self._blocks
        return [blocks[block] for block in taken]

    def remove(self, block: KVCacheBlock) -> None:
        self._queue.find(block.block_id)
        self.num_free_blocks -= 1

    def prepend_n(self, blocks: Sequence[KVCacheBlock]) -> None:
        self._queue.give_blank([block.block_id for block in blocks])
        self.num_free_blocks += len(blocks)

    def append_n(self, blocks: Sequence[KVCacheBlock]) -> None:
        self._queue.give_cached([block.block_id for block in blocks])
        self.num_free_blocks += len(blocks)


def exchange_free_queue(kv_cache_manager: KVCacheManager) -> None:
    """Let a manager whose blocks are all still blank hand out runs from now on."""
    pool = kv_cache_manager.block_pool
    queue = GroupedFreeQueue(pool.blocks, pool.free_block_queue.get_all_free_blocks())
    pool.free_block_queue = queue
    for manager in kv_cache_manager.coordinator.single_type_managers:
        for name in _ASKING:
            setattr(manager, name, _announcing(queue, manager, getattr(manager, name)))


def _announcing(
    queue: GroupedFreeQueue, manager: Any, allocate: Callable[..., Any]
) -> Callable[..., Any]:
    """``allocate`` of a manager, which first tells the queue for whom it asks."""

    def announce_and_allocate(request_id: str, *args: Any, **kwargs: Any) -> Any:
        queue.ask_as(request_id, manager.req_to_blocks)
        return allocate(request_id, *args, **kwargs)

    return announce_and_allocate
