"""How long runs of blocks stay under the churn of a real multi-turn trace."""

from collections.abc import Callable
from pathlib import Path

import pytest

from kv.device_queue import BLOCKS_PER_WINDOW_BLOCK, DeviceBlockQueue
from tests.kv.lru_queue import LRUQueue
from tests.kv.trace_churn import Churn, ChurnResult, FreeQueue, Turn, read_turns

TRACE = Path(__file__).parents[3] / "shared/traces/mooncake_conversation_multiturn16k.jsonl.gz"
NUM_BLOCKS = 8192


@pytest.fixture(scope="module")
def turns() -> list[Turn]:
    if not TRACE.exists():
        pytest.skip("the traces lie beside the checkout, and are not there")
    return read_turns(TRACE)


def churn(queue: FreeQueue, turns: list[Turn], use: float) -> ChurnResult:
    return Churn(queue, NUM_BLOCKS).run(turns, use=use)


@pytest.mark.parametrize("use", [0.5, 0.7, 0.9, 0.97])
def test_runs_stay_long_and_the_prefix_cache_keeps_its_hits(
    turns: list[Turn], use: float, record_property: Callable[[str, object], None]
) -> None:
    """Runs are 20 blocks and more, where an LRU queue's are one or two, for an eighth of its hits.

    At 97 % in use there is little left to choose from: runs of 10 blocks and more.
    """
    ours = churn(DeviceBlockQueue(NUM_BLOCKS, NUM_BLOCKS // BLOCKS_PER_WINDOW_BLOCK), turns, use)
    lru = churn(LRUQueue(NUM_BLOCKS), turns, use)

    record_property("mean_run", [ours.mean_run, lru.mean_run])
    record_property("hit_rate", [ours.hit_rate, lru.hit_rate])
    assert lru.mean_run < 2
    assert ours.mean_run >= (20 if use <= 0.9 else 10)
    assert ours.hit_rate >= 7 / 8 * lru.hit_rate
