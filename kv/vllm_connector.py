"""vLLM's way to our host memory: a KV connector, the one module here that touches vLLM.

vLLM makes one of it beside the scheduler, which plans (``kv.swap``), and one in each worker,
which copies (``kv.swap_runner``); a step's plan travels in the step's metadata. Swap-outs run
before anything of the step can overwrite their blocks, swap-ins before its forward pass. Each
private name leaned on is pinned by ``tests/kv/test_vllm_contract.py``.
"""

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorWorkerMetadata,
    SupportsHMA,
)
from vllm.utils.torch_utils import get_accelerator_view_from_cpu_tensor
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, iter_layer_specs
from vllm.v1.metrics.cache_hit_source import CacheHitSource
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import Request

from kv.copier import BlockCopier, CpuCopier, CudaCopier
from kv.errors import ConnectorSettingError, HostMemorySizeError
from kv.host_memory import GIB, allocate, check_fits, free_bytes
from kv.host_pool import HostBlockPool
from kv.layout import Placement, block_rows
from kv.selftest import check_round_trip
from kv.swap import SwapPlan, SwapPlanner, SwapTotals
from kv.swap_runner import SwapRunner
from kv.transfer_config import HOST_KV_GIB

logger = logging.getLogger(__name__)


@dataclass
class SwapMetadata(KVConnectorMetadata):
    """A step's plan on its way to the workers."""

    plan: SwapPlan


@dataclass
class SwapReport(KVConnectorWorkerMetadata):
    """What a step's copies cost one worker, on its way back."""

    busy_s: float

    def aggregate(self, other: "SwapReport") -> "SwapReport":
        # Workers copy at the same time: the engine waits for the slowest.
        return SwapReport(max(self.busy_s, other.busy_s))


class FastSwitchConnector(KVConnectorBase_V1, SupportsHMA):
    """Keeps preempted requests' KV in host memory and loads it back when they are readmitted.

    Loads are synchronous: they come before the forward pass of the step that readmits. Where an
    engine's KV is of a kind that cannot be moved block by block, nothing is kept and vLLM
    recomputes, as it does without a connector.
    """

    _cache_hit_source = CacheHitSource.HOST

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._wanted_gib = _host_kv_gib(self._kv_transfer_config.kv_connector_extra_config)
        why_not = _why_not_switchable(vllm_config, kv_cache_config)
        self._num_host_blocks = 0 if why_not else self._count_host_blocks()
        if why_not and role is KVConnectorRole.SCHEDULER:
            logger.warning("Preempted requests will be recomputed, not swapped: %s", why_not)
        # Beside the scheduler the pool is real; a worker is told which blocks to use.
        num_planned = self._num_host_blocks if role is KVConnectorRole.SCHEDULER else 0
        self._planner = SwapPlanner(HostBlockPool(num_planned), vllm_config.cache_config.block_size)
        self._runner: SwapRunner | None = None

    @property
    def requires_kv_delivery(self) -> bool:
        return False  # what is not kept is recomputed

    # --- beside the scheduler: what the scheduler asks (its KVKeeper) -------------------------

    @property
    def swap_totals(self) -> SwapTotals:
        return self._planner.totals

    @property
    def num_host_blocks(self) -> int:
        return self._planner.num_host_blocks

    @property
    def num_host_blocks_used(self) -> int:
        return self._planner.num_host_blocks_used

    def swap_out(self, request: Request, block_ids: tuple[list[int], ...]) -> bool:
        """Keep the computed tokens of a request that is being preempted, if possible.

        ``block_ids`` is its block table, one list per KV cache group.
        """
        if not self.num_host_blocks:
            return False
        [device_blocks] = block_ids
        return self._planner.swap_out(
            request.request_id, device_blocks, request.num_computed_tokens
        )

    def copy_ahead(self, likely_victims: Iterable[tuple[Request, tuple[list[int], ...]]]) -> None:
        """Nothing yet: a copy is made when its request is preempted."""

    def predicted_swap_s(self, num_blocks: int) -> float:
        """Not known yet."""
        return 0.0

    def drop_copied_from(self, block_ids: Collection[int]) -> None:
        """Forget every copy that was made from one of these blocks."""
        self._planner.drop_copied_from(block_ids)

    # --- beside the scheduler: what vLLM asks --------------------------------------------------

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int, bool]:
        end = self._end_of_load(request)
        return max(end - num_computed_tokens, 0), False

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        if not num_external_tokens:
            # The prefix cache still has it all, or vLLM does not want it.
            self._planner.drop(request.request_id)
            return
        [device_blocks] = blocks.get_block_ids()
        end = self._end_of_load(request)
        self._planner.swap_in(
            request.request_id,
            device_blocks,
            first_token=end - num_external_tokens,
            end_token=end,
        )

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> SwapMetadata:
        return SwapMetadata(self._planner.take_plan())

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        report = connector_output.kv_connector_worker_meta
        if report is not None:
            self._planner.totals.stall_s += report.busy_s

    def request_finished_all_groups(
        self,
        request: Request,
        block_ids: tuple[list[int], ...],
    ) -> tuple[bool, dict[str, Any] | None]:
        self._planner.drop(request.request_id)
        return False, None

    def reset_cache(self) -> bool:
        self._planner.drop_all()
        return True

    # --- in a worker ---------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: Mapping[str, torch.Tensor]) -> None:
        """Allocate host memory to match the engine's KV, and prove that blocks survive it.

        Raises:
            HostMemorySizeError: the machine has too little memory.
            KVLayoutError: the KV does not lie where the engine says.
            RoundTripError: a block came back from host memory changed.
        """
        if not self._num_host_blocks:
            return
        is_pinned = next(iter(kv_caches.values())).is_cuda
        # Pinned memory is gone at once, so the next worker sees less; other memory only with use.
        num_workers = 1 if is_pinned else self._vllm_config.parallel_config.world_size
        num_bytes = num_workers * self._num_host_blocks * self._block_bytes
        check_fits(self._wanted_gib, num_bytes, free_bytes())
        copier = self._make_copier(kv_caches)
        check_round_trip(
            copier,
            kv_caches,
            num_blocks=self._kv_cache_config.num_blocks,
            num_host_blocks=self._num_host_blocks,
        )
        self._runner = SwapRunner(copier)

    def handle_preemptions(self, kv_connector_metadata: SwapMetadata) -> None:
        if self._runner:
            self._runner.run_outs(kv_connector_metadata.plan.outs)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        if self._runner:
            self._runner.run_ins(self._get_connector_metadata().plan.ins)

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for: loads come before the forward pass, in order."""

    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to save: KV leaves the device only when its request is preempted."""

    def wait_for_save(self) -> None:
        """Nothing to wait for."""

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._runner.take_failed_device_blocks() if self._runner else set()

    def build_connector_worker_meta(self) -> SwapReport | None:
        busy_s = self._runner.take_busy_s() if self._runner else 0.0
        return SwapReport(busy_s) if busy_s else None

    # --- both ----------------------------------------------------------------------------------

    @property
    def _block_bytes(self) -> int:
        """One block's KV in all layers, on one worker."""
        # Every tensor entry describes a place in the same allocation and gives its whole size.
        [size] = {tensor.size for tensor in self._kv_cache_config.kv_cache_tensors}
        return size // self._kv_cache_config.num_blocks

    def _count_host_blocks(self) -> int:
        world_size = self._vllm_config.parallel_config.world_size
        num_blocks = int(self._wanted_gib * GIB / world_size / self._block_bytes)
        if not num_blocks:
            needed = f"one block of this model takes {self._block_bytes * world_size / GIB:.3g} GiB"
            raise HostMemorySizeError(self._wanted_gib, needed)
        return num_blocks

    def _end_of_load(self, request: Request) -> int:
        # The last token is always computed: its logits are what the next one is sampled from.
        return min(self._planner.num_kept_tokens(request.request_id), request.num_tokens - 1)

    def _make_copier(self, kv_caches: Mapping[str, torch.Tensor]) -> BlockCopier:
        any_layer = next(iter(kv_caches.values()))
        memory = torch.empty(0, dtype=torch.uint8, device=any_layer.device)
        memory.set_(any_layer.untyped_storage())
        placements = [
            Placement(tuple(tensor.layers), tensor.offset, tensor.layer_stride, tensor.block_stride)
            for tensor in self._kv_cache_config.kv_cache_tensors
        ]
        device = block_rows(memory, placements, self._kv_cache_config.num_blocks)
        is_cuda = any_layer.is_cuda
        host = allocate(device, self._num_host_blocks, is_pinned=is_cuda)
        if not is_cuda:
            return CpuCopier(device, host)
        self._pinned = host  # the views below do not keep it alive
        views = {name: get_accelerator_view_from_cpu_tensor(rows) for name, rows in host.items()}
        return CudaCopier(device, views)


def _host_kv_gib(extra_config: Mapping[str, Any]) -> float:
    """The connector's one setting.

    Raises:
        ConnectorSettingError: it is missing or no positive number, or there are others.
    """
    unknown = extra_config.keys() - {HOST_KV_GIB}
    if unknown:
        raise ConnectorSettingError(min(unknown), f"unknown; only {HOST_KV_GIB!r} is understood")
    value = extra_config.get(HOST_KV_GIB)
    if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
        raise ConnectorSettingError(HOST_KV_GIB, f"{value!r} is no positive number of GiB")
    return value


def _why_not_switchable(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> str | None:
    """What about an engine's KV keeps us from moving it block by block, if anything."""
    parallel = vllm_config.parallel_config
    group, *further_groups = kv_cache_config.kv_cache_groups
    specs = iter_layer_specs(group.kv_cache_spec)
    reasons = {
        "with pipeline parallelism the workers' blocks differ in size": (
            parallel.pipeline_parallel_size > 1
        ),
        "with context parallelism a block is spread over workers": (
            parallel.decode_context_parallel_size > 1
        ),
        "with speculative decoding the drafter keeps state of its own": (
            vllm_config.speculative_config is not None
        ),
        "the model mixes kinds of attention, whose blocks differ": bool(further_groups),
        "the model's attention does not keep all of its past": not all(
            isinstance(spec, FullAttentionSpec) for spec in specs
        ),
        "the engine itself moves or clears blocks before they are swapped": (
            group.host_resident or kv_cache_config.needs_kv_cache_zeroing
        ),
    }
    return next((reason for reason, applies in reasons.items() if applies), None)
