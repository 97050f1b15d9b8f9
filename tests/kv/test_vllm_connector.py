"""The connector by itself: its settings, its size, and what it refuses."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
    SlidingWindowSpec,
)

from kv.errors import ConnectorSettingError, HostMemorySizeError, KVLayoutError, RoundTripError
from kv.swap import BlockCopies, SwapPlan
from kv.transfer_config import transfer_config
from kv.vllm_connector import FastSwitchConnector, SwapMetadata

GIB = 2**30
NUM_BLOCKS, BLOCK_TOKENS, LAYERS = 8, 32, ["first", "second"]
PAGE = 2 * 2 * 32 * BLOCK_TOKENS * 4  # K and V, heads, head size, float32
BLOCK_GIB = len(LAYERS) * PAGE / GIB


def engine_config(extra: dict[str, Any], **changes: Any) -> Any:
    """As much of an engine's configuration as the connector looks at."""
    transfer = KVTransferConfig(**(transfer_config(1.0) | {"kv_connector_extra_config": extra}))
    parallel = {"pipeline_parallel_size": 1, "decode_context_parallel_size": 1, "world_size": 1}
    return SimpleNamespace(
        kv_transfer_config=transfer,
        cache_config=SimpleNamespace(block_size=BLOCK_TOKENS),
        parallel_config=SimpleNamespace(**(parallel | changes.pop("parallel", {}))),
        speculative_config=changes.pop("speculative_config", None),
    )


def kv_cache_config(*, is_windowed: bool = False, num_groups: int = 1) -> KVCacheConfig:
    shape = {"block_size": BLOCK_TOKENS, "num_kv_heads": 2, "head_size": 32, "dtype": torch.float32}
    spec = (
        SlidingWindowSpec(**shape, sliding_window=64) if is_windowed else FullAttentionSpec(**shape)
    )
    span = NUM_BLOCKS * PAGE
    tensor = KVCacheTensor(
        size=len(LAYERS) * span, layers=LAYERS, layer_stride=span, block_stride=PAGE
    )
    return KVCacheConfig(NUM_BLOCKS, [tensor], [KVCacheGroupSpec(LAYERS, spec)] * num_groups)


def kv_tensors() -> dict[str, torch.Tensor]:
    memory = torch.zeros((len(LAYERS), NUM_BLOCKS, 2, BLOCK_TOKENS, 64))
    return {name: memory[index] for index, name in enumerate(LAYERS)}


def make(
    role: KVConnectorRole = KVConnectorRole.WORKER, *, host_blocks: int = 4, **changes: Any
) -> FastSwitchConnector:
    kv_cache = changes.pop("kv_cache", kv_cache_config())
    config = engine_config({"host_kv_gib": host_blocks * BLOCK_GIB}, **changes)
    return FastSwitchConnector(config, role, kv_cache)


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({}, "'host_kv_gib': None is no positive number of GiB"),
        ({"host_kv_gib": "4"}, "'4' is no positive number"),
        ({"host_kv_gib": True}, "True is no positive number"),
        ({"host_kv_gib": -1}, "-1 is no positive number"),
        ({"host_kv_gib": float("nan")}, "nan is no positive number"),
        ({"host_kv_gib": 1, "host_gib": 1}, "'host_gib': unknown; only 'host_kv_gib'"),
    ],
    ids=["missing", "text", "flag", "negative", "nan", "unknown"],
)
def test_settings_that_are_not_understood_are_refused(extra: dict[str, Any], message: str) -> None:
    """A wrong setting is named, with what it should have been."""
    with pytest.raises(ConnectorSettingError, match=message):
        FastSwitchConnector(engine_config(extra), KVConnectorRole.WORKER, kv_cache_config())


def test_the_memory_is_shared_out_among_the_workers() -> None:
    """With two workers, each keeps its part of every block: there are half as many."""
    role = KVConnectorRole.SCHEDULER

    assert make(role, host_blocks=6).num_host_blocks == 6
    assert make(role, host_blocks=6, parallel={"world_size": 2}).num_host_blocks == 3


def test_less_than_a_block_is_refused() -> None:
    """Host memory that holds no block is an error that says how much one takes."""
    config = engine_config({"host_kv_gib": BLOCK_GIB / 2})
    with pytest.raises(HostMemorySizeError, match=r"one block of this model takes 3\.05e-05 GiB"):
        FastSwitchConnector(config, KVConnectorRole.SCHEDULER, kv_cache_config())


def test_more_than_the_machine_has_is_refused_before_it_is_taken() -> None:
    """The worker does not start to allocate what cannot be had."""
    worker = make(host_blocks=10**9)

    with pytest.raises(HostMemorySizeError, match=r"at most .* fit"):
        worker.register_kv_caches(kv_tensors())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"parallel": {"pipeline_parallel_size": 2}}, "pipeline parallelism"),
        ({"parallel": {"decode_context_parallel_size": 2}}, "context parallelism"),
        ({"speculative_config": object()}, "speculative decoding"),
        ({"kv_cache": kv_cache_config(num_groups=2)}, "mixes kinds of attention"),
        ({"kv_cache": kv_cache_config(is_windowed=True)}, "does not keep all of its past"),
    ],
    ids=["pipeline", "context", "speculative", "hybrid", "sliding window"],
)
def test_kv_that_cannot_be_moved_is_left_to_vllm(
    changes: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Such engines run as without a connector, and say why at start-up."""
    # Libraries that configure logging anew switch off whatever loggers there are.
    logging.getLogger("kv.vllm_connector").disabled = False
    caplog.set_level(logging.WARNING, logger="kv.vllm_connector")
    connector = make(KVConnectorRole.SCHEDULER, **changes)

    request = SimpleNamespace(request_id="a", num_computed_tokens=32)
    assert not connector.swap_out(request, ([1],))
    assert connector.num_host_blocks == 0
    assert reason in caplog.text


def test_blocks_go_out_and_come_back_in_every_layer() -> None:
    """A plan's swap-outs and swap-ins move exactly the blocks that it names."""
    worker, layers = make(), kv_tensors()
    worker.register_kv_caches(layers)
    for number, layer in enumerate(layers.values()):
        layer[3] = 3.5 + number

    worker.handle_preemptions(SwapMetadata(SwapPlan(outs=BlockCopies([3], [1]))))
    for layer in layers.values():
        layer.zero_()
    worker.bind_connector_metadata(SwapMetadata(SwapPlan(ins=BlockCopies([6], [1]))))
    worker.start_load_kv(None)

    for number, layer in enumerate(layers.values()):
        assert (layer[6] == 3.5 + number).all()
        assert not layer[3].any()
    assert worker.get_block_ids_with_load_errors() == set()
    report = worker.build_connector_worker_meta()
    assert report is not None
    assert report.busy_s > 0
    assert worker.build_connector_worker_meta() is None


def test_a_layout_that_is_not_as_described_stops_the_start() -> None:
    """If layers lie elsewhere than the engine says, the engine does not start."""
    layers = kv_tensors()
    apart = {"first": layers["first"], "second": layers["second"].clone()}

    with pytest.raises(RoundTripError, match="KV cache of second"):
        make().register_kv_caches(apart)

    with pytest.raises(KVLayoutError):
        make().register_kv_caches({"first": torch.zeros((NUM_BLOCKS, PAGE // 4))})
