"""vLLM's own block manager on our queue, and what the exchange relies on in vLLM."""

import inspect
import random
import re
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from vllm.sampling_params import SamplingParams
from vllm.utils.hashing import sha256
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.kv_cache_coordinator import KVCacheCoordinator
from vllm.v1.core.kv_cache_manager import KVCacheManager
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.core.single_type_kv_cache_manager import (
    FullAttentionManager,
    SingleTypeKVCacheManager,
)
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request

from kv.runs import runs_of
from kv.vllm_free_queue import exchange_free_queue

BLOCK_TOKENS = 16


@pytest.fixture(scope="module", autouse=True)
def _hashes() -> None:
    init_none_hash(sha256)


def manager_of(num_blocks: int) -> KVCacheManager:
    """vLLM's manager of ``num_blocks`` blocks (and the one that stands for none), on our queue."""
    spec = FullAttentionSpec(
        block_size=BLOCK_TOKENS, num_kv_heads=1, head_size=8, dtype=torch.float32
    )
    config = KVCacheConfig(num_blocks + 1, [], [KVCacheGroupSpec(["layer"], spec)])
    manager = KVCacheManager(
        config, max_model_len=8192, scheduler_block_size=16, hash_block_size=16
    )
    exchange_free_queue(manager)
    return manager


def request_of(request_id: str, token_ids: Sequence[int]) -> Request:
    return Request(
        request_id,
        list(token_ids),
        SamplingParams(max_tokens=100),
        None,
        block_hasher=get_request_block_hasher(BLOCK_TOKENS, sha256),
    )


def prefill(manager: KVCacheManager, request: Request) -> int:
    """Give a request the blocks of its prompt; how many of its tokens were found cached."""
    found, num_found, _ = manager.get_computed_blocks(request)
    num_new = request.num_tokens - num_found
    assert manager.allocate_slots(request, num_new, num_found, found) is not None
    request.num_computed_tokens = request.num_tokens
    return num_found


def decode(manager: KVCacheManager, request: Request, token_id: int = 7) -> bool:
    """Give a request room for one more token, if there is."""
    if manager.allocate_slots(request, 1) is None:
        return False
    request.append_output_token_ids(token_id)
    request.num_computed_tokens += 1
    return True


def table(manager: KVCacheManager, request: Request) -> list[int]:
    [blocks] = manager.get_blocks(request.request_id).get_block_ids()
    return blocks


def test_requests_that_grow_side_by_side_keep_their_blocks_together() -> None:
    """With vLLM's queue each new block would lie behind the other request's; here one run each."""
    manager = manager_of(200)
    requests = [request_of(name, range(40)) for name in "ab"]
    for request in requests:
        request.skip_reading_prefix_cache = True
        prefill(manager, request)

    for _ in range(160):
        assert all(decode(manager, request) for request in requests)

    assert [len(list(runs_of(table(manager, request)))) for request in requests] == [1, 1]
    assert len(table(manager, requests[0])) == 13


def test_a_prefix_that_is_still_cached_is_found_and_grown_behind() -> None:
    """The next turn of a conversation finds the earlier one's blocks, and goes on behind them."""
    manager = manager_of(100)
    first = request_of("turn 1", range(64))
    prefill(manager, first)
    manager.free(first)

    second = request_of("turn 2", range(100))

    assert prefill(manager, second) == 64
    assert len(list(runs_of(table(manager, second)))) == 1
    assert manager.block_pool.get_num_free_blocks() == 100 - 7


def test_blocks_for_loaded_tokens_lie_together_too() -> None:
    """What a connector loads goes into a run, and what is computed then behind it."""
    manager = manager_of(200)
    bystander = request_of("bystander", range(500, 540))
    prefill(manager, bystander)
    loaded = request_of("loaded", range(100))

    assert manager.allocate_slots(loaded, 4, num_external_computed_tokens=96) is not None
    assert len(list(runs_of(table(manager, loaded)))) == 1


def test_every_block_can_be_used() -> None:
    """A request may have all blocks there are, and one more is refused."""
    manager = manager_of(12)

    prefill(manager, request_of("all", range(12 * BLOCK_TOKENS)))

    assert manager.block_pool.get_num_free_blocks() == 0
    with pytest.raises(ValueError, match="Cannot get 1 free blocks"):
        manager.block_pool.get_new_blocks(1)


def test_random_requests_never_share_a_block_they_write_to() -> None:
    """Under churn with shared prefixes, what is counted as free is what no request has."""
    manager, rng = manager_of(60), random.Random(0)
    running: list[Request] = []
    for number in range(3000):
        action = rng.random()
        if action < 0.2 and manager.block_pool.get_num_free_blocks() >= 20:
            prompt = [rng.randrange(2)] * BLOCK_TOKENS + [number] * rng.randrange(1, 200)
            running.append(request_of(str(number), prompt))
            prefill(manager, running[-1])
        elif action < 0.35 and running:
            manager.free(running.pop(rng.randrange(len(running))))
        elif running and not decode(manager, request := rng.choice(running), number):
            running.remove(request)
            manager.free(request)
        tables = [table(manager, request) for request in running]
        owners = Counter(block for blocks in tables for block in blocks)
        assert manager.block_pool.get_num_free_blocks() == 60 - len(owners)
        assert all(owners[blocks[-1]] == 1 for blocks in tables)
    for request in running:
        manager.free(request)
    assert manager.reset_prefix_cache()


def test_the_pool_uses_nothing_else_of_its_queue() -> None:
    """What vLLM's pool calls on its queue, once it has taken the block that stands for none."""
    used = set(re.findall(r"self\.free_block_queue\.(\w+)", inspect.getsource(BlockPool)))

    assert used == {
        "popleft",  # in the pool's own start
        "popleft_n",
        "prepend_n",
        "append_n",
        "remove",
        "num_free_blocks",
    }


def test_blank_blocks_come_back_first_and_cached_ones_last() -> None:
    """Which of the queue's two ends a freed block goes to says whether it is cached."""
    source = inspect.getsource(BlockPool.free_blocks)

    assert "prepend_n(blocks_to_evict_first)" in source
    assert "append_n(blocks_to_evict_last)" in source
    assert "if block.block_hash is None or not self.enable_caching:" in source


def test_a_managers_two_ways_to_ask_name_the_request_first() -> None:
    """Full attention asks for blocks in two methods, both called with the request's id first."""
    asking = [
        name
        for name, method in inspect.getmembers(SingleTypeKVCacheManager, inspect.isfunction)
        if "self.block_pool.get_new_blocks(" in inspect.getsource(method)
    ]
    assert asking == ["allocate_external_computed_blocks", "allocate_new_blocks"]
    for name in asking:
        method = getattr(FullAttentionManager, name)
        assert method is getattr(SingleTypeKVCacheManager, name)
        assert list(inspect.signature(method).parameters)[1] == "request_id"
        assert re.search(rf"manager\.{name}\(\s+request_id,", inspect.getsource(KVCacheCoordinator))


def test_the_connector_is_shown_the_manager_before_any_block_is_used() -> None:
    """The hook where the queue is exchanged comes once, in the scheduler's start."""
    source = inspect.getsource(Scheduler.__init__)

    assert source.count("self.connector.bind_kv_cache_manager(self.kv_cache_manager)") == 1
