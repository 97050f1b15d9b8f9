"""What our connector relies on in vLLM: one test per thing, so a new release names it."""

import inspect
from dataclasses import fields

import torch
from vllm import _custom_ops
from vllm.config import CacheConfig, VllmConfig
from vllm.distributed.kv_transfer.kv_connector.utils import KVOutputAggregator
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorBase_V1, SupportsHMA
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import init_none_hash, resolve_none_hash_seed
from vllm.v1.core.sched.output import CachedRequestData, NewRequestData, SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.core import EngineCore
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
    MLAAttentionSpec,
    iter_layer_specs,
)
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request
from vllm.v1.worker.gpu.kv_connector import ActiveKVConnector
from vllm.v1.worker.gpu.model_runner import GPUModelRunner as NewerModelRunner
from vllm.v1.worker.gpu_model_runner import GPUModelRunner
from vllm.v1.worker.kv_connector_model_runner_mixin import KVConnectorModelRunnerMixin
from vllm.v1.worker.worker_base import WorkerBase

from kv.swap_manager import SwapReport
from kv.vllm_connector import FastSwitchConnector, SwapWorkerMetadata


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
        "get_finished",
        "get_block_ids_with_load_errors",
        "build_connector_worker_meta",
        "request_finished_all_groups",
        "bind_kv_cache_manager",
        "reset_cache",
        "shutdown",
    ):
        base = KVConnectorBase_V1 if hasattr(KVConnectorBase_V1, name) else SupportsHMA
        theirs = inspect.signature(getattr(base, name)).parameters
        assert list(inspect.signature(getattr(FastSwitchConnector, name)).parameters) == [*theirs]


def test_every_step_brings_its_plan_before_it_writes_a_block() -> None:
    """The CPU's runner (version 1) hands it over before it clears, copies or computes anything.

    It does so in every step, also in one that computes nothing.
    """
    execute = inspect.getsource(GPUModelRunner.execute_model)
    plan, rest = execute.split(".handle_preemptions(kv_connector_metadata)", 1)

    assert plan.rstrip().endswith("get_kv_transfer_group()")
    assert "if has_kv_transfer_group():" in plan
    assert "return" not in plan.split("if has_kv_transfer_group():")[-1]
    assert is_in_order(
        rest, "self._update_states(", "kv_connector_no_forward", "maybe_get_kv_connector_output("
    )


def test_the_newer_runner_brings_every_plan_before_the_forward_pass() -> None:
    """The GPU's runner (version 2) does so too, in steps with a forward pass and without.

    It clears and copies blocks before that: engines that need either are not swapped.
    """
    execute = inspect.getsource(NewerModelRunner.execute_model)
    begin = inspect.getsource(ActiveKVConnector.pre_forward)
    without_forward = inspect.getsource(ActiveKVConnector.no_forward)

    assert is_in_order(execute, "self.kv_connector.pre_forward(", "run_fullgraph(batch_desc)")
    assert execute.count("self.kv_connector.pre_forward(") == 2
    assert is_in_order(begin, ".handle_preemptions(", "has_sync_kv_loads", "self._start_load_kv()")
    assert "self.pre_forward(scheduler_output)" in without_forward


def test_a_step_without_tokens_still_reaches_the_worker() -> None:
    """The newer runner, too, gives the connector its turn when nothing is computed."""
    execute = inspect.getsource(NewerModelRunner.execute_model)

    assert is_in_order(
        execute,
        "if scheduler_output.total_num_scheduled_tokens == 0:",
        "self.kv_connector.no_forward(scheduler_output)",
    )


def test_workers_are_asked_for_what_landed_before_what_failed() -> None:
    """Both runners ask in the order in which one report answers, within the same step."""
    for runner in (
        KVConnectorModelRunnerMixin._get_kv_connector_output,
        ActiveKVConnector.post_forward,
    ):
        assert is_in_order(
            inspect.getsource(runner),
            ".get_transfer_results(",
            ".finished_recving = transfer_results.finished_recving",
            ".get_block_ids_with_load_errors()",
            ".build_connector_worker_meta()",
        )
    ask = inspect.getsource(KVConnectorBase_V1.get_transfer_results)
    assert "self.get_finished(finished_req_ids)" in ask


def test_loads_are_offered_and_accepted_around_the_allocation() -> None:
    """What is offered is accepted in the same turn, and the plan is made when all is decided."""
    source = inspect.getsource(Scheduler.schedule)

    assert is_in_order(
        source,
        "self.connector.get_num_new_matched_tokens(",
        "if ext_tokens is None:",
        "num_external_computed_tokens=num_external_computed_tokens,",
        "self.connector.update_state_after_alloc(",
        "has_sync_kv_loads = True",
        "self._build_kv_connector_meta(self.connector, scheduler_output)",
    )


def test_a_request_that_is_loaded_waits_until_it_is_told() -> None:
    """A load beside the step ends with the request's name in ``finished_recving``."""
    update = inspect.getsource(Scheduler._update_from_kv_xfer_finished)
    step = inspect.getsource(Scheduler.update_from_output)

    assert is_in_order(
        update,
        "self.connector.update_connector_output(kv_connector_output)",
        "in kv_connector_output.finished_recving or ()",
        "self.finished_recving_kv_req_ids.add(req_id)",
    )
    # What failed is known before the request is taken for loaded.
    assert is_in_order(step, "self._handle_invalid_blocks(", "self._update_from_kv_xfer_finished(")


def test_blocks_that_are_being_loaded_stay_their_requests() -> None:
    """A request that ends while it is loaded gives its blocks back when the load has landed."""
    end = inspect.getsource(Scheduler.finish_requests)
    update = inspect.getsource(Scheduler._update_from_kv_xfer_finished)

    assert is_in_order(
        end,
        "request.status == RequestStatus.WAITING_FOR_REMOTE_KVS",
        "request.request_id not in self.finished_recving_kv_req_ids",
        "delay_free_blocks=delay_free_blocks",
    )
    assert "self._free_blocks(self.requests[req_id])" in update


def test_a_steps_output_says_which_blocks_it_may_write() -> None:
    """New requests, and cached ones with what they were given, have the fields we read."""
    new = {field.name for field in fields(NewRequestData)}
    cached = {field.name for field in fields(CachedRequestData)}
    output = {field.name for field in fields(SchedulerOutput)}

    assert {"block_ids", "num_computed_tokens"} <= new
    assert {"req_ids", "new_block_ids", "num_computed_tokens", "resumed_req_ids"} <= cached
    assert {"num_scheduled_tokens", "scheduled_new_reqs", "scheduled_cached_reqs"} <= output
    # "For those in the set, new_block_ids will be used as the request's block IDs."
    make = inspect.getsource(Scheduler._make_cached_request_data)
    assert is_in_order(make, "get_block_ids(allow_none=True)", "resumed_req_ids=")


def test_requests_have_block_hashes_whenever_there_is_a_connector() -> None:
    """Hashes are made without prefix caching too, and for each block as soon as it is full."""
    start = inspect.getsource(EngineCore.__init__)
    append = inspect.getsource(Request.append_output_token_ids)

    assert is_in_order(
        start,
        "enable_prefix_caching or kv_connector is not None:",
        "self.request_block_hasher = get_request_block_hasher(",
    )
    assert append.rstrip().endswith("self.update_block_hashes()")


def test_workers_have_their_host_memory_before_the_planner_is_made() -> None:
    """It looks at what they have opened; and each worker knows its number by then."""
    assert is_in_order(
        inspect.getsource(EngineCore.__init__),
        "self._initialize_kv_caches(vllm_config)",
        "self.scheduler: SchedulerInterface = Scheduler(",
    )
    assert "self.parallel_config.rank = rank" in inspect.getsource(WorkerBase.__init__)


def test_a_block_has_the_same_hash_in_every_process() -> None:
    """With the algorithm that is vLLM's own choice; its seed is fixed."""
    assert CacheConfig().prefix_caching_hash_algo == "sha256"
    hash_block = get_hash_fn_by_name("sha256")
    assert resolve_none_hash_seed(hash_block) == resolve_none_hash_seed(hash_block)
    seeds = inspect.getsource(init_none_hash)
    assert "resolve_none_hash_seed(hash_fn)" in seeds
    assert "NONE_HASH = BlockHash(hash_fn(_NONE_HASH_SEED))" in seeds


def test_an_engine_s_configuration_has_a_hash_of_all_that_shapes_its_kv() -> None:
    """Version, model, cache, parallel parts and attention are among it."""
    source = inspect.getsource(VllmConfig.compute_hash)
    for part in ("model", "cache", "parallel", "attention"):
        assert f"self.{part}_config.compute_hash()" in source
    assert "__version__" in source


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
    """Failed blocks of several workers add up, their reports are made one with our method.

    A request counts as loaded when the last worker has it.
    """
    outputs = [
        ModelRunnerOutput.with_kv_conn_output_only(
            KVConnectorOutput(
                finished_recving=landed,
                invalid_block_ids={block},
                kv_connector_worker_meta=SwapWorkerMetadata(SwapReport(stall_s=stall_s)),
            )
        )
        for landed, block, stall_s in (({"a", "b"}, 3, 0.5), ({"a"}, 4, 0.25))
    ]

    together = KVOutputAggregator(expected_finished_count=2).aggregate(outputs)

    output = together.kv_connector_output
    assert output.finished_recving == {"a"}
    assert output.invalid_block_ids == {3, 4}
    assert output.kv_connector_worker_meta == SwapWorkerMetadata(SwapReport(stall_s=0.5))


def test_the_drivers_batched_copy_is_where_we_look_for_it() -> None:
    """It takes the pointers of both sides and the sizes, in this order."""
    [source, target, sizes, *rest] = inspect.signature(
        _custom_ops.swap_blocks_batch
    ).parameters.values()

    assert [source.name, target.name, sizes.name] == ["src_ptrs", "dst_ptrs", "sizes"]
    assert all(one.default is not inspect.Parameter.empty for one in rest)
