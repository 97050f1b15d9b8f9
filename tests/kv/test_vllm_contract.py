"""What our connector relies on in vLLM: one test per thing, so a new release names it."""

import inspect
from dataclasses import fields

import torch
from vllm.distributed.kv_transfer.kv_connector.utils import KVOutputAggregator
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1
from vllm.utils import torch_utils
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
    MLAAttentionSpec,
    iter_layer_specs,
)
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.worker.gpu.kv_connector import ActiveKVConnector
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.kv_connector_model_runner_mixin import KVConnectorModelRunnerMixin

from kv.vllm_connector import FastSwitchConnector, SwapReport


def is_in_order(source: str, *parts: str) -> bool:
    places = [source.find(part) for part in parts]
    return -1 not in places and places == sorted(places)


def test_the_connector_answers_all_that_is_asked_of_one() -> None:
    """Every abstract method is there, and each that we override has vLLM's parameters."""
    assert not getattr(FastSwitchConnector, "__abstractmethods__", None)
    for name in (
        "get_num_new_matched_tokens",
        "update_state_after_alloc",
        "build_connector_meta",
        "update_connector_output",
        "register_kv_caches",
        "handle_preemptions",
        "start_load_kv",
        "get_block_ids_with_load_errors",
        "build_connector_worker_meta",
        "reset_cache",
    ):
        theirs = inspect.signature(getattr(KVConnectorBase_V1, name)).parameters
        assert list(inspect.signature(getattr(FastSwitchConnector, name)).parameters) == [*theirs]


def test_swap_outs_come_before_the_step_touches_a_block() -> None:
    """The CPU's runner (version 1) saves first; then it clears and copies blocks, then loads."""
    execute = inspect.getsource(GPUModelRunner.execute_model)
    load = inspect.getsource(KVConnectorModelRunnerMixin._get_kv_connector_output)

    assert is_in_order(
        execute, ".handle_preemptions(", "self._update_states(", "maybe_get_kv_connector_output("
    )
    assert is_in_order(load, "has_sync_kv_loads", "start_load_kv", "yield output")


def test_the_newer_runner_saves_before_it_loads() -> None:
    """The GPU's runner (version 2) saves, then loads, both before the forward pass.

    It clears and copies blocks before that: engines that need either are not swapped.
    """
    source = inspect.getsource(ActiveKVConnector.pre_forward)

    assert is_in_order(source, ".handle_preemptions(", "has_sync_kv_loads", "self._start_load_kv()")


def test_loads_that_a_step_waits_for_are_marked() -> None:
    """A synchronous load makes vLLM run it before the forward pass of its step."""
    source = inspect.getsource(Scheduler.schedule)

    assert is_in_order(
        source,
        "self.connector.update_state_after_alloc(",
        "if num_external_computed_tokens > 0:",
        "has_sync_kv_loads = True",
        "self._build_kv_connector_meta(self.connector, scheduler_output)",
    )


def test_a_finished_request_is_dropped_in_every_state() -> None:
    """Whatever way a request ends, vLLM tells the connector, with groups of blocks or none."""
    assert "_connector_finished(request)" in inspect.getsource(Scheduler._free_request)
    source = inspect.getsource(Scheduler._connector_finished)
    assert "self.connector.request_finished_all_groups(" in source


def test_tensors_say_where_their_blocks_lie() -> None:
    """A KV tensor's description has the bytes that our rows are cut by."""
    names = {field.name for field in fields(KVCacheTensor)}

    assert {"size", "layers", "layer_stride", "block_stride", "offset"} <= names


def test_kinds_of_attention_can_be_told_apart() -> None:
    """Full attention, MLA's included, has one class; a group gives its layers' kinds."""
    spec = FullAttentionSpec(block_size=32, num_kv_heads=2, head_size=32, dtype=torch.float32)
    config = KVCacheConfig(8, [], [KVCacheGroupSpec(["layer"], spec)])

    assert issubclass(MLAAttentionSpec, FullAttentionSpec)
    assert list(iter_layer_specs(spec)) == [spec]
    assert (config.needs_kv_cache_zeroing, config.kv_cache_groups[0].host_resident) == (
        False,
        False,
    )


def test_workers_reports_are_put_together() -> None:
    """Of several workers, failed blocks add up and the longest stall counts."""
    outputs = [
        ModelRunnerOutput.with_kv_conn_output_only(
            KVConnectorOutput(
                invalid_block_ids={block},
                kv_connector_worker_meta=SwapReport(busy_s),
            )
        )
        for block, busy_s in ((3, 0.5), (4, 0.25))
    ]

    together = KVOutputAggregator(expected_finished_count=2).aggregate(outputs)

    assert together.kv_connector_output.invalid_block_ids == {3, 4}
    assert together.kv_connector_output.kv_connector_worker_meta == SwapReport(0.5)


def test_pinned_memory_can_be_shown_to_the_gpu() -> None:
    """The function that gives a GPU its view of host memory is where we look for it."""
    view = torch_utils.get_accelerator_view_from_cpu_tensor

    assert list(inspect.signature(view).parameters) == ["cpu_tensor"]
