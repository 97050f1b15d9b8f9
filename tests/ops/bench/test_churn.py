"""Blocks are found where a pool in long use has left them."""

from random import Random

import pytest

from kv.block_groups import BlockGroupPool
from ops.bench.churn import churned

NUM_BLOCKS, POOL_BLOCKS = 32, 1024


@pytest.mark.parametrize("use", [0.3, 0.9, 1.0])
def test_requests_hold_as_many_blocks_as_asked_for_and_none_twice(use: float) -> None:
    """At least two requests, so that one can leave while another comes."""
    pool = BlockGroupPool("device", POOL_BLOCKS)
    requests = churned(pool, NUM_BLOCKS, use, Random(0))
    blocks = [block for one in requests for block in one]
    assert len(requests) >= 2
    assert {len(one) for one in requests} == {NUM_BLOCKS}
    assert len({*blocks}) == len(blocks)
    assert pool.num_free >= round((1 - use) * POOL_BLOCKS)


def test_blocks_follow_from_the_seed() -> None:
    """A number can be measured again on the same blocks."""
    one, again, other = (
        churned(BlockGroupPool("device", POOL_BLOCKS), NUM_BLOCKS, 0.9, Random(seed))
        for seed in (1, 1, 2)
    )
    assert one == again != other


def test_a_request_that_fills_half_the_pool_still_has_company() -> None:
    """The largest there are: two at once, each of them twice what is swapped."""
    pool = BlockGroupPool("device", 4 * NUM_BLOCKS)
    assert len(churned(pool, NUM_BLOCKS, 1.0, Random(0))) >= 2
