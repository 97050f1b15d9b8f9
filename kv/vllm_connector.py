"""vLLM's way to our host memory: a KV connector.

vLLM makes one of it beside the scheduler, which plans (``kv.vllm_planning``), and one in each
worker, which copies (``kv.vllm_copying``); a step's plan travels in the step's metadata, what
became of it in the step's output. This module divides vLLM's questions between the two. Each
private name leaned on is pinned by ``tests/kv/test_vllm_contract.py``.
"""

import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
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
from vllm.v1.core.kv_cache_manager import KVCacheBlocks, KVCacheManager
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, iter_layer_specs
from vllm.v1.metrics.cache_hit_source import CacheHitSource
from vllm.v1.outputs import KVConnectorOutput
from vllm.v1.request import Request

from kv.errors import HostMemorySizeError, SharedPoolError
from kv.host_memory import GIB
from kv.settings import SwapSettings
from kv.shared_host import OpenedIndex, open_index
from kv.swap import SwapTotals
from kv.swap_manager import SwapManager, SwapReport
from kv.swap_plan import SwapPlan
from kv.vllm_copying import WorkerIdentity, block_bytes, make_swap_manager
from kv.vllm_free_queue import exchange_free_queue
from kv.vllm_identity import key_bytes, kv_facts, why_not_shareable
from kv.vllm_planning import SwapPlanning

logger = logging.getLogger(__name__)


@dataclass
class SwapMetadata(KVConnectorMetadata):
    """A step's plan on its way to the workers."""

    plan: SwapPlan


@dataclass
class SwapWorkerMetadata(KVConnectorWorkerMetadata):
    """What became of the copies on one worker, or on all together, on its way back."""

    report: SwapReport

    def aggregate(self, other: "SwapWorkerMetadata") -> "SwapWorkerMetadata":
        return SwapWorkerMetadata(self.report.together_with(other.report))


class FastSwitchConnector(KVConnectorBase_V1, SupportsHMA):
    """Keeps KV in host memory: of preempted requests, of finished ones, of likely victims.

    Where an engine's KV is of a kind that cannot be moved block by block, nothing is kept and vLLM
    recomputes, as it does without a connector.
    """

    _cache_hit_source = CacheHitSource.HOST

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self._settings = SwapSettings.read(self._kv_transfer_config.kv_connector_extra_config)
        why_not = _why_not_switchable(vllm_config, kv_cache_config)
        self._num_host_blocks = 0 if why_not else self._count_host_blocks()
        if why_not and role is KVConnectorRole.SCHEDULER:
            logger.warning("Preempted requests will be recomputed, not swapped: %s", why_not)
        if not self._can_outlive(role):
            self._settings = replace(self._settings, pool=None)
        # Beside the scheduler host memory is planned; a worker is told which blocks to use.
        self._planning: SwapPlanning | None = None
        if self._num_host_blocks and role is KVConnectorRole.SCHEDULER:
            self._planning = SwapPlanning(
                self._settings,
                num_host_blocks=self._num_host_blocks,
                block_tokens=vllm_config.cache_config.block_size,
                is_prefix_caching=vllm_config.cache_config.enable_prefix_caching,
                opened=self._open_index(),
            )
        self._manager: SwapManager | None = None
        self._report = SwapReport()

    @property
    def requires_kv_delivery(self) -> bool:
        return False  # what is not kept is recomputed

    # --- beside the scheduler: what the scheduler asks (its KVKeeper) -------------------------

    @property
    def swap_totals(self) -> SwapTotals:
        return self._planning.totals if self._planning else SwapTotals()

    @property
    def num_host_blocks(self) -> int:
        return self._planning.num_host_blocks if self._planning else 0

    @property
    def num_host_blocks_used(self) -> int:
        return self._planning.num_host_blocks_used if self._planning else 0

    def swap_out(self, request: Request, block_ids: tuple[list[int], ...]) -> bool:
        """Keep the computed tokens of a request that is being preempted, if possible.

        ``block_ids`` is its block table, one list per KV cache group.
        """
        if self._planning is None:
            return False
        [device_blocks] = block_ids
        return self._planning.swap_out(request, device_blocks)

    def copy_ahead(
        self,
        likely_victims: Iterable[Request],
        block_ids_of: Callable[[str], tuple[list[int], ...]],
    ) -> None:
        """Send what will never change of requests that may have to leave, the likeliest first."""
        if self._planning is not None:
            self._planning.copy_ahead(likely_victims, lambda name: block_ids_of(name)[0])

    def predicted_swap_s(self, num_blocks: int) -> float:
        """What the engine will wait for so many blocks to leave and come back; 0 while unknown."""
        return self._planning.predicted_swap_s(num_blocks) if self._planning else 0.0

    def predicted_load_s(self, num_blocks: int) -> float:
        """What loading so many blocks takes, beside the engine's steps or not; 0 while unknown."""
        return self._planning.predicted_load_s(num_blocks) if self._planning else 0.0

    def rank_anew(self, priorities: Mapping[str, int]) -> None:
        """Who has left the device has other priorities now: its copies are worth as much."""
        if self._planning is not None:
            self._planning.rank_anew(priorities)

    def drop_copied_from(self, block_ids: Collection[int]) -> None:
        """Forget every copy made from these blocks, or from what was computed with them.

        Which those are is not known, so all that are young enough go.
        """
        if self._planning is not None:
            self._planning.forget_recent()

    # --- beside the scheduler: what vLLM asks --------------------------------------------------

    def bind_kv_cache_manager(self, kv_cache_manager: KVCacheManager) -> None:
        super().bind_kv_cache_manager(kv_cache_manager)
        if self._planning is not None and self._settings.groups:
            exchange_free_queue(kv_cache_manager)

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        if self._planning is None:
            return 0, False
        return self._planning.offer(request, num_computed_tokens)

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        if self._planning is not None:
            [device_blocks] = blocks.get_block_ids()
            self._planning.accept(request, device_blocks, num_external_tokens)

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> SwapMetadata:
        if self._planning is None:
            return SwapMetadata(SwapPlan())
        return SwapMetadata(self._planning.take_plan(scheduler_output))

    def update_connector_output(self, connector_output: KVConnectorOutput) -> None:
        if self._planning is not None:
            metadata = connector_output.kv_connector_worker_meta
            self._planning.hear(
                metadata.report if metadata else None, connector_output.finished_recving or ()
            )

    def request_finished_all_groups(
        self,
        request: Request,
        block_ids: tuple[list[int], ...],
    ) -> tuple[bool, dict[str, Any] | None]:
        if self._planning is not None:
            [device_blocks] = block_ids
            self._planning.finish(request, device_blocks)
        return False, None

    def reset_cache(self) -> bool:
        if self._planning is not None:
            self._planning.forget_all()
        return True

    # --- in a worker ---------------------------------------------------------------------------

    def register_kv_caches(self, kv_caches: Mapping[str, torch.Tensor]) -> None:
        """Allocate host memory to match the engine's KV, and prove that blocks survive it.

        Raises:
            HostMemorySizeError: the machine has too little memory.
            KVLayoutError: the KV does not lie where the engine says.
            RoundTripError: a block came back from host memory changed.
        """
        if self._num_host_blocks:
            self._manager = make_swap_manager(
                self._settings,
                kv_caches,
                self._kv_cache_config,
                num_host_blocks=self._num_host_blocks,
                num_workers=self._vllm_config.parallel_config.world_size,
                identity=self._identity() if self._settings.pool else None,
            )

    def handle_preemptions(self, kv_connector_metadata: SwapMetadata) -> None:
        if self._manager:
            self._manager.submit(kv_connector_metadata.plan)

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None:
        """Nothing to start: all copies of a step start before its first write."""

    def wait_for_layer_load(self, layer_name: str) -> None:
        """Nothing to wait for: what the step reads was loaded, or is ordered, before it."""

    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None:
        """Nothing to save: KV is copied out between steps."""

    def wait_for_save(self) -> None:
        """Nothing to wait for."""

    def get_finished(self, finished_req_ids: set[str]) -> tuple[set[str] | None, set[str] | None]:
        if self._manager:
            # One report for all three questions, which vLLM asks in this order: a request that
            # has landed and the blocks of it that failed have to be told in the same step.
            self._report = self._manager.take_report()
        return None, self._report.landed

    def get_block_ids_with_load_errors(self) -> set[int]:
        return self._report.failed_device_blocks

    def build_connector_worker_meta(self) -> SwapWorkerMetadata | None:
        report, self._report = self._report, SwapReport()
        if self._vllm_config.parallel_config.rank > 0:
            report = report.besides_counts()
        return None if report == SwapReport() else SwapWorkerMetadata(report)

    def shutdown(self) -> None:
        if self._manager:
            self._manager.close()
        if self._planning:
            self._planning.close()

    # --- host memory that outlives the engine --------------------------------------------------

    def _can_outlive(self, role: KVConnectorRole) -> bool:
        if self._settings.pool is None or not self._settings.reuse or not self._num_host_blocks:
            return False
        why_not = why_not_shareable(self._vllm_config)
        if why_not and role is KVConnectorRole.SCHEDULER:
            logger.warning("KV in host memory will end with this engine: %s", why_not)
        return why_not is None

    def _identity(self) -> WorkerIdentity:
        rank = self._vllm_config.parallel_config.rank
        return WorkerIdentity(rank, kv_facts(self._vllm_config))

    def _open_index(self) -> OpenedIndex | None:
        """The pool's index; the workers, which come first, have opened the rest."""
        if self._settings.pool is None:
            return None
        try:
            return open_index(
                self._settings.pool,
                kv_facts(self._vllm_config),
                num_ranks=self._vllm_config.parallel_config.world_size,
                num_host_blocks=self._num_host_blocks,
                key_bytes=key_bytes(self._vllm_config),
            )
        except SharedPoolError as error:
            logger.warning("KV in host memory will end with this engine: %s", error)
            return None

    # --- both ----------------------------------------------------------------------------------

    def _count_host_blocks(self) -> int:
        world_size = self._vllm_config.parallel_config.world_size
        num_bytes = block_bytes(self._kv_cache_config) * world_size
        num_blocks = int(self._settings.host_kv_gib * GIB / num_bytes)
        if not num_blocks:
            needed = f"one block of this model takes {num_bytes / GIB:.3g} GiB"
            raise HostMemorySizeError(self._settings.host_kv_gib, needed)
        return num_blocks


def _why_not_switchable(vllm_config: VllmConfig, kv_cache_config: KVCacheConfig) -> str | None:
    """What about an engine's KV keeps us from moving it block by block, if anything."""
    parallel = vllm_config.parallel_config
    if not kv_cache_config.kv_cache_groups:
        return "the model keeps no KV"
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
        "an engine that sleeps takes the memory away while copies run": (
            vllm_config.model_config.enable_sleep_mode
        ),
        "the engine itself moves or clears blocks before they are swapped": (
            group.host_resident or kv_cache_config.needs_kv_cache_zeroing
        ),
    }
    return next((reason for reason, applies in reasons.items() if applies), None)
