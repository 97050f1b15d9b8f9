"""The process of a scheduler that schedules for no engine: what a step gives is made up.

Run as ``python -m ops.bench.scheduling_engine``: an engine's arguments as one line of JSON on
standard input, then a ``SchedulingTrial`` per line; each is answered with ``SchedulingTimes`` per
line. No model is loaded and no KV allocated: to the scheduler and the connector beside it blocks
are numbers anyway. Each copy that they plan has landed when its step is over, after a made-up time.
"""

import gc
from collections.abc import Callable, Mapping
from itertools import count
from random import Random
from time import thread_time
from typing import Any

import torch
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.utils.hashing import sha256
from vllm.v1.core.kv_cache_utils import get_request_block_hasher, init_none_hash
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
)
from vllm.v1.outputs import KVConnectorOutput, ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from deployments.vllm_engine import make_engine_args
from kv.swap_manager import SwapReport
from kv.vllm_connector import SwapMetadata, SwapWorkerMetadata
from ops.bench.answering import answer_lines
from ops.bench.scheduling import (
    DISPLACE,
    LEAD_STEPS,
    NUM_RERANKED,
    PROMPT_TOKENS,
    RERANK,
    STEPS_PER_RERANK,
    SchedulingTimes,
    SchedulingTrial,
)
from ops.bench.workload import random_ids
from scheduler.vllm_scheduler import FastSwitchScheduler

COPY_S_PER_BLOCK = 50e-6  # a megabyte at 20 GB/s: loads are then begun beside the steps
USUAL_PRIORITY = 1000
PRIORITIES = range(USUAL_PRIORITY - 2, USUAL_PRIORITY + 3)  # of the re-ranked
OURS = frozenset({"scheduler_cls", "kv_transfer_config", "additional_config"})


class TimedScheduler(Scheduler):
    """vLLM's scheduler; what its ``schedule()`` took in the last step, and preempting so far."""

    vllm_s = 0.0
    preempting_s = 0.0

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:  # noqa: FBT001, FBT002
        begin_s = thread_time()
        output = super().schedule(throttle_prefills)
        self.vllm_s = thread_time() - begin_s
        return output

    def _preempt_request(self, *args: Any) -> None:
        begin_s = thread_time()
        super()._preempt_request(*args)
        self.preempting_s += thread_time() - begin_s


class TimedFastSwitchScheduler(FastSwitchScheduler, TimedScheduler):
    """Ours; what it calls ``super()`` for is timed, as the timed one comes next to vLLM's."""


class Trials:
    """Schedulers of one engine's arguments, a new one for each trial."""

    def __init__(self, engine_args: Mapping[str, Any]) -> None:
        # The bound on switches is left out: how much time they take is what is asked.
        theirs = {name: value for name, value in engine_args.items() if name not in OURS}
        ours = {**theirs, "kv_transfer_config": engine_args["kv_transfer_config"]}
        self._plain = make_engine_args(theirs).create_engine_config()
        self._config = make_engine_args(ours).create_engine_config()

    def run(self, trial: SchedulingTrial) -> SchedulingTimes:
        config = self._plain if trial.is_plain else self._config
        scheduler = _scheduler(config, trial)
        try:
            return _Stepping(scheduler, trial, config.cache_config.block_size).run()
        finally:
            scheduler.shutdown()


def _scheduler(config: VllmConfig, trial: SchedulingTrial) -> TimedScheduler:
    """With blocks for all that run and as many again, so that only slots are short."""
    block_tokens = config.cache_config.block_size
    num_blocks = 2 * trial.num_running * (config.model_config.max_model_len // block_tokens + 1)
    config.cache_config.num_gpu_blocks = num_blocks
    spec = FullAttentionSpec(
        block_size=block_tokens, num_kv_heads=1, head_size=32, dtype=torch.float32
    )
    num_bytes = num_blocks * spec.page_size_bytes
    tensor = KVCacheTensor(
        size=num_bytes,
        layers=["layer"],
        layer_stride=num_bytes,
        block_stride=spec.page_size_bytes,
    )
    kv_cache = KVCacheConfig(num_blocks, [tensor], [KVCacheGroupSpec(["layer"], spec)])
    make = TimedScheduler if trial.is_plain else TimedFastSwitchScheduler
    return make(config, kv_cache, StructuredOutputManager(config), block_tokens)


class _Stepping:
    """One trial: the requests, what happens to them between steps, and the times."""

    def __init__(self, scheduler: TimedScheduler, trial: SchedulingTrial, block_tokens: int):
        self._scheduler, self._trial = scheduler, trial
        self._random = Random(trial.seed)
        self._hasher = get_request_block_hasher(block_tokens, sha256)
        self._numbers = count()
        self._usual: list[str] = []

    def run(self) -> SchedulingTimes:
        trial = self._trial
        for _ in range(trial.num_running + trial.num_waiting):
            self._usual.append(self._add(USUAL_PRIORITY))
        for _ in range(LEAD_STEPS):
            self._step()
        assert len(self._scheduler.running) == trial.num_running
        # As vLLM's engine does once it has started: what lives on is not looked through again.
        gc.collect()
        gc.freeze()
        num_preempted, preempting_s = self._num_preempted, self._scheduler.preempting_s
        steps_s, vllm_s = [], []
        for number in range(trial.num_steps):
            self._disturb(number)
            steps_s.append(self._step())
            vllm_s.append(self._scheduler.vllm_s)
        gc.unfreeze()
        return SchedulingTimes(
            steps_s,
            vllm_s,
            self._num_preempted - num_preempted,
            self._scheduler.preempting_s - preempting_s,
        )

    @property
    def _num_preempted(self) -> int:
        return sum(one.num_preemptions for one in self._scheduler.requests.values())

    def _disturb(self, number: int) -> None:
        """What happens before a step; its cost is in the step's time where ours is to blame."""
        if self._trial.workload == DISPLACE:
            # After as many steps as there are slots, all that run came in this way.
            self._add(USUAL_PRIORITY - 1 - number // self._trial.num_running)
            # So that as many wait as before: one that has never run.
            self._scheduler.finish_requests(self._usual.pop(), RequestStatus.FINISHED_ABORTED)
        elif self._trial.workload == RERANK and number % STEPS_PER_RERANK == 0:
            reranked = self._random.sample(self._usual, NUM_RERANKED)
            self._scheduler.set_priorities(
                {request_id: self._random.choice(PRIORITIES) for request_id in reranked}
            )

    def _add(self, priority: int) -> str:
        number = next(self._numbers)
        request = Request(
            f"request-{number}",
            prompt_token_ids=random_ids(self._random, PROMPT_TOKENS),
            sampling_params=SamplingParams(max_tokens=1 << 20, ignore_eos=True),
            pooling_params=None,
            priority=priority,
            arrival_time=float(number),
            block_hasher=self._hasher,
        )
        self._scheduler.add_request(request)
        return request.request_id

    def _step(self) -> float:
        begin_s = thread_time()
        output = self._scheduler.schedule()
        took_s = thread_time() - begin_s
        names = list(output.num_scheduled_tokens)
        requests = self._scheduler.requests
        self._scheduler.update_from_output(
            output,
            ModelRunnerOutput(
                req_ids=names,
                req_id_to_index={name: index for index, name in enumerate(names)},
                sampled_token_ids=[
                    [] if requests[name].is_prefill_chunk else [1] for name in names
                ],
                kv_connector_output=_copied(output.kv_connector_metadata),
            ),
        )
        return took_s


def _copied(metadata: SwapMetadata | None) -> KVConnectorOutput | None:
    """What the workers would say of a step's copies."""
    if metadata is None or not metadata.plan.copies:
        return None
    report = SwapReport()
    for copies in metadata.plan.copies:
        report.blocks[copies.direction] += len(copies)
        report.busy_s[copies.direction] += len(copies) * COPY_S_PER_BLOCK
        if copies.request_id is not None:
            report.landed.add(copies.request_id)
    return KVConnectorOutput(
        finished_recving=report.landed, kv_connector_worker_meta=SwapWorkerMetadata(report)
    )


def main() -> None:
    def make_answer(arguments: dict[str, Any]) -> Callable[[SchedulingTrial], SchedulingTimes]:
        init_none_hash(sha256)  # it may log
        return Trials(arguments).run

    answer_lines(make_answer, SchedulingTrial)


if __name__ == "__main__":
    main()
