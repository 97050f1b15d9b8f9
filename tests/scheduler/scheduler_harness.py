"""Our scheduler without an engine: steps whose output the test makes up."""

from collections.abc import Collection
from itertools import count
from pathlib import Path
from typing import Any

import torch
from vllm import EngineArgs, SamplingParams
from vllm.config import KVTransferConfig
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from scheduler.engine_config import additional_config
from scheduler.reports import SwitchCounts
from scheduler.vllm_scheduler import FastSwitchScheduler
from tests.scheduler.fake_keeper import FakeKeeper

BLOCK_TOKENS = 32


class Stepped:
    """A scheduler with a fake keeper, stepped by hand; each decode answers with token 1."""

    def __init__(
        self,
        model: Path,
        *,
        num_slots: int = 2,
        num_blocks: int = 64,
        step_tokens: int = 512,
        max_switches_per_s: float | None = None,
    ) -> None:
        config = EngineArgs(
            model=str(model),
            max_model_len=512,
            max_num_seqs=num_slots,
            max_num_batched_tokens=step_tokens,
            block_size=BLOCK_TOKENS,
            enable_prefix_caching=False,
            scheduling_policy="priority",
            additional_config=additional_config(max_switches_per_s=max_switches_per_s),
            kv_transfer_config=KVTransferConfig(
                kv_connector="FakeKeeper",
                kv_connector_module_path="tests.scheduler.fake_keeper",
                kv_role="kv_both",
                kv_load_failure_policy="recompute",
            ),
        ).create_engine_config()
        config.cache_config.num_gpu_blocks = num_blocks
        spec = FullAttentionSpec(
            block_size=BLOCK_TOKENS, num_kv_heads=2, head_size=32, dtype=torch.float32
        )
        kv_cache = KVCacheConfig(num_blocks, [], [KVCacheGroupSpec(["layer"], spec)])
        self.scheduler = FastSwitchScheduler(
            config, kv_cache, StructuredOutputManager(config), BLOCK_TOKENS
        )
        self._arrivals = count()

    @property
    def keeper(self) -> FakeKeeper:
        return self.scheduler.connector

    @property
    def running(self) -> set[str]:
        return {one.request_id for one in self.scheduler.running}

    @property
    def loading(self) -> set[str]:
        return set(self.keeper.loading)

    @property
    def switches(self) -> SwitchCounts:
        return self.scheduler.take_progress(is_full=True).switches

    @property
    def num_free_blocks(self) -> int:
        return self.scheduler.kv_cache_manager.block_pool.get_num_free_blocks()

    def add(
        self,
        name: str,
        *,
        priority: int = 5,
        num_tokens: int = 40,
        max_tokens: int = 200,
        kept: int = 0,
        prompt_logprobs: int | None = None,
        extra_args: dict[str, Any] | None = None,
    ) -> Request:
        """A request that arrives now; the keeper has the first ``kept`` tokens of it."""
        request = Request(
            name,
            prompt_token_ids=[1] * num_tokens,
            sampling_params=SamplingParams(
                max_tokens=max_tokens,
                ignore_eos=True,
                prompt_logprobs=prompt_logprobs,
                extra_args=extra_args,
            ),
            pooling_params=None,
            priority=priority,
            arrival_time=float(next(self._arrivals)),
        )
        if kept:
            self.keeper.kept[name] = kept
        self.scheduler.add_request(request)
        return request

    def step(
        self, *, landed: Collection[str] = (), failed_blocks: Collection[int] = ()
    ) -> SchedulerOutput:
        """A step at whose end these loads have landed, and these blocks were not loaded."""
        output = self.scheduler.schedule()
        names = list(output.num_scheduled_tokens)
        decodes = [not self.scheduler.requests[name].is_prefill_chunk for name in names]
        for name in landed:
            del self.keeper.loading[name]
        self.scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=names,
                req_id_to_index={name: index for index, name in enumerate(names)},
                sampled_token_ids=[[1] if is_decode else [] for is_decode in decodes],
                kv_connector_output=KVConnectorOutput(
                    finished_recving=set(landed), invalid_block_ids=set(failed_blocks)
                ),
            ),
        )
        return output

    def drain(self, *, max_steps: int = 3000) -> None:
        """Step until all have ended; each load lands in the step after the one that began it."""
        for _ in range(max_steps):
            if not self.scheduler.requests:
                return
            self.step(landed=list(self.keeper.loading))
        message = f"still there after {max_steps} steps: {list(self.scheduler.requests)}"
        raise AssertionError(message)

    def abort(self, name: str) -> None:
        self.scheduler.finish_requests(name, RequestStatus.FINISHED_ABORTED)
