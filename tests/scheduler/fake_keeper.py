"""A connector that keeps no KV but says it does: what the scheduler sees of one, steered by tests.

A module of its own, since vLLM loads connectors by module path.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from itertools import islice
from types import SimpleNamespace
from typing import Any

from vllm.config import VllmConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    SupportsHMA,
)
from vllm.v1.core.kv_cache_manager import KVCacheBlocks
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig
from vllm.v1.request import Request

from scheduler.vllm_keeper import BlockTables, SwapTotals


class FakeKeeper(KVConnectorBase_V1, SupportsHMA):
    """Keeps what it is given, for ever or until dropped; loads land when the test says so."""

    def __init__(
        self, vllm_config: VllmConfig, role: KVConnectorRole, kv_cache_config: KVCacheConfig
    ) -> None:
        super().__init__(vllm_config, role, kv_cache_config)
        self.swap_totals: Any = SimpleNamespace(**dict.fromkeys(SwapTotals.__annotations__, 0))
        self.num_host_blocks = 1000
        self.num_host_blocks_used = 0
        self.kept: dict[str, int] = {}  # tokens by request
        self.loading: dict[str, list[int]] = {}  # blocks by request
        self.undecided: set[str] = set()
        self.is_async = True
        self.swap_s = 0.0
        self.num_ahead = 3  # how many of the likely victims there is time for
        self.copied_ahead: list[str] = []
        self.ranked: dict[str, int] = {}

    # --- a keeper ------------------------------------------------------------------------------

    def swap_out(self, request: Request, block_ids: BlockTables) -> bool:
        [blocks] = block_ids
        assert len(blocks) * 32 >= request.num_computed_tokens
        self.kept[request.request_id] = request.num_computed_tokens
        self.swap_totals.swaps_out += 1
        return True

    def copy_ahead(
        self, likely_victims: Iterable[Request], block_ids_of: Callable[[str], BlockTables]
    ) -> None:
        self.copied_ahead = [one.request_id for one in islice(likely_victims, self.num_ahead)]
        assert all(block_ids_of(name) for name in self.copied_ahead)

    def predicted_swap_s(self, num_blocks: int) -> float:
        return num_blocks * self.swap_s

    def predicted_load_s(self, num_blocks: int) -> float:
        return num_blocks * self.swap_s / 2

    def rank_anew(self, priorities: Mapping[str, int]) -> None:
        self.ranked |= priorities

    def drop_copied_from(self, block_ids: Collection[int]) -> None: ...

    # --- a connector ---------------------------------------------------------------------------

    def get_num_new_matched_tokens(
        self, request: Request, num_computed_tokens: int
    ) -> tuple[int | None, bool]:
        if request.request_id in self.undecided:
            return None, False
        end = min(self.kept.get(request.request_id, 0), request.num_tokens - 1)
        num_tokens = max(end - num_computed_tokens, 0)
        return num_tokens, self.is_async and num_tokens > 0

    def update_state_after_alloc(
        self, request: Request, blocks: KVCacheBlocks, num_external_tokens: int
    ) -> None:
        self.kept.pop(request.request_id, None)
        if num_external_tokens:
            self.swap_totals.swaps_in += 1
            if self.is_async:
                [self.loading[request.request_id]] = blocks.get_block_ids()

    def build_connector_meta(self, scheduler_output: SchedulerOutput) -> KVConnectorMetadata:
        return KVConnectorMetadata()

    def request_finished_all_groups(
        self, request: Request, block_ids: tuple[list[int], ...]
    ) -> tuple[bool, dict[str, Any] | None]:
        self.kept.pop(request.request_id, None)
        return False, None

    def reset_cache(self) -> bool:
        self.kept.clear()
        return True

    # --- in a worker: there is none ------------------------------------------------------------

    def start_load_kv(self, forward_context: Any, **kwargs: Any) -> None: ...

    def wait_for_layer_load(self, layer_name: str) -> None: ...

    def save_kv_layer(self, *args: Any, **kwargs: Any) -> None: ...

    def wait_for_save(self) -> None: ...
