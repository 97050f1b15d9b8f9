"""vLLM's scheduler, with context switches: what the engine is told to use.

Adds to vLLM 0.32 what its ``schedule()`` lacks, without copying it: priorities that change while
requests run, waiting requests that displace running ones, KV that is kept instead of thrown away
when a request is preempted or waits for a tool between two turns, and reports of progress. All of
it happens at the edges of vLLM's own methods; each private name leaned on here and in the
``scheduler.vllm_`` modules is pinned by ``tests/scheduler/test_vllm_contract.py``.
"""

import time
from collections import deque
from dataclasses import asdict
from itertools import islice
from math import inf, isfinite
from typing import Any

from msgspec import structs
from vllm.utils.math_utils import cdiv
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.outputs import ModelRunnerOutput
from vllm.v1.request import Request, RequestStatus

from scheduler.costs import StepCosts
from scheduler.displacement import quantum_steps
from scheduler.engine_config import SchedulerSettings
from scheduler.progress import ProgressTracker, Standing
from scheduler.reports import EngineProgress, SwitchCounts
from scheduler.switch_budget import UNLIMITED, Allowance, SwitchBudget
from scheduler.vllm_keeper import KVKeeper, SwapTotals
from scheduler.vllm_prefills import PrefillingScheduler

TENANT_ARG = "fastswitch_tenant"
CARRIED_ARG = "fastswitch_carried"  # of a request that comes in the middle of its answer
DEFAULT_TENANT = "default"

# With less than this part of the blocks free, somebody is likely to be displaced soon.
LOW_BLOCKS_SHARE = 1 / 8
# Looked at in each step, so few: whoever is displaced was among the worst for some steps.
NUM_LIKELY_VICTIMS = 16


class FastSwitchScheduler(PrefillingScheduler):
    """vLLM's scheduler with live priorities, displacement and swaps."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.policy is not SchedulingPolicy.PRIORITY:
            msg = f"scheduling policy is {self.policy.value!r}: FastSwitch needs 'priority'"
            raise ValueError(msg)
        self._keeper: KVKeeper | None = (
            self.connector if isinstance(self.connector, KVKeeper) else None
        )
        settings = SchedulerSettings.read(self.vllm_config.additional_config)
        self._budget: SwitchBudget | None = None
        if settings.max_switches_per_s < inf:
            self._budget = SwitchBudget(settings.max_switches_per_s, clock=time.monotonic)
        self._progress = ProgressTracker()
        self._costs = StepCosts()
        self._new_priorities: dict[str, int] = {}
        self._unswitchable: set[str] = set()
        self._catching_up: set[str] = set()  # of those that fell back, those that run
        self._steps_begun_s: deque[float] = deque()  # of steps whose output is not back yet
        self._last_output_s = 0.0
        self._is_anybody_left_waiting = False
        self._put_off: tuple[str, ...] = ()  # in the last step that had to choose
        self._num_put_off = 0
        self._num_preemptions = 0
        self._num_fallbacks = 0
        self._num_unswitchable = 0
        self._num_cheaper_recomputes = 0

    # --- what the service calls -------------------------------------------------------------

    def set_priorities(self, priorities: dict[str, int]) -> None:
        """Change the priorities of live requests from the next step on; unknown ids are ignored."""
        self._new_priorities.update(priorities)

    def take_progress(self, is_full: bool) -> EngineProgress:  # noqa: FBT001 - called by position
        """What moved since the last call, and where the engine stands; everything if asked."""
        if is_full:
            # One that was aborted while its KV was loaded stays until the load has landed.
            live = [one for one in self.requests.values() if not one.is_finished()]
        else:
            moved = (self.requests.get(request_id) for request_id in self._progress.moved)
            live = [*self.running, *(one for one in moved if one is not None)]
        for request in live:
            self._progress.advance(request.request_id, _standing(request))
        movement = self._progress.take(is_full=is_full)
        num_running, num_waiting = self.get_request_counts()
        num_free = self.kv_cache_manager.block_pool.get_num_free_blocks()
        return EngineProgress(
            step=self.current_step,
            is_full=is_full,
            live=movement.live,
            finished=movement.finished,
            num_running=num_running,
            num_waiting=num_waiting,
            blocks_used=self._num_usable_blocks - num_free - self._held.num_idle_blocks,
            blocks_total=self._num_usable_blocks,
            host_blocks_used=self._keeper.num_host_blocks_used if self._keeper else 0,
            host_blocks_total=self._keeper.num_host_blocks if self._keeper else 0,
            switches=self._switch_counts(),
            tenant_service=self._progress.tenant_service if is_full else {},
            reload_token_s=self._reload_token_s(),
        )

    # --- vLLM's own methods, with something before or after ----------------------------------

    def add_request(self, request: Request) -> None:
        if request.request_id not in self.requests:  # else: more input for a streaming session
            self._progress.arrive(
                request.request_id,
                tenant=_tenant(request),
                conversation=request.session_id,
                arrival_s=request.arrival_time,
                standing=_standing(request),
                output_done=_carried(request)[0],
            )
        if not _is_switchable(request):
            self._unswitchable.add(request.request_id)
        super().add_request(request)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:  # noqa: FBT001, FBT002
        self._steps_begun_s.append(time.monotonic())
        self._apply_priorities()
        self._order_running()
        self._limit_prefills(self._costs.num_tokens_within(self._costs.typical_step_s))
        self._make_way()
        self._copy_ahead()
        output = super().schedule(throttle_prefills)
        # With no tokens left they wait for the next step, not for somebody's place.
        has_tokens_left = output.total_num_scheduled_tokens < self._token_budget
        self._is_anybody_left_waiting = bool(self.waiting) and has_tokens_left
        admitted = [new.req_id for new in output.scheduled_new_reqs]
        admitted += output.scheduled_cached_reqs.resumed_req_ids
        for request_id in admitted:
            self._quantum_ends[request_id] = self._quantum_end(self.requests[request_id])
        # Those that wait are left out: they may be many, and this is asked in every step.
        self._catching_up.update(self._progress.fallen_back & admitted)
        self._unsettled.update(admitted)
        self._count_recomputed(output)
        return output

    def update_from_output(
        self, scheduler_output: SchedulerOutput, model_runner_output: ModelRunnerOutput
    ) -> dict[int, EngineCoreOutputs]:
        self._learn_costs(scheduler_output)
        return super().update_from_output(scheduler_output, model_runner_output)

    def _preempt_request(
        self,
        request: Request,
        timestamp: float,
        drop_stale_output: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        num_computed = request.num_computed_tokens
        self._progress.advance(request.request_id, _standing(request))
        self._progress.fall_back(request.request_id, num_computed)
        self._quantum_ends.pop(request.request_id, None)
        self._catching_up.discard(request.request_id)
        self._num_preemptions += 1
        if self._budget is not None:
            self._budget.charge()
        # Whoever drops the output in flight wants the KV behind it gone too.
        if num_computed and (drop_stale_output or not self._keep(request)):
            self._num_fallbacks += 1
        super()._preempt_request(request, timestamp, drop_stale_output)

    def reset_prefix_cache(
        self,
        reset_running_requests: bool = False,  # noqa: FBT001, FBT002
        reset_connector: bool = False,  # noqa: FBT001, FBT002
    ) -> bool:
        # What is cached is no longer right (new weights): then no copy of it is right either.
        return super().reset_prefix_cache(
            reset_running_requests, reset_connector or self._keeper is not None
        )

    def _free_request(
        self,
        request: Request,
        delay_free_blocks: bool = False,  # noqa: FBT001, FBT002
    ) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        self._progress.advance(request.request_id, _standing(request))
        self._progress.finish(request.request_id, str(request.get_finished_reason()))
        self._quantum_ends.pop(request.request_id, None)
        self._unswitchable.discard(request.request_id)
        return super()._free_request(request, delay_free_blocks)

    def _handle_invalid_blocks(
        self,
        invalid_block_ids: set[int],
        num_scheduled_tokens: dict[str, int],
    ) -> set[str]:
        in_doubt = super()._handle_invalid_blocks(invalid_block_ids, num_scheduled_tokens)
        if self._keeper is not None:
            self._keeper.drop_copied_from(invalid_block_ids)
        return in_doubt

    # --- before a step: ranks, displacement, copies ------------------------------------------

    @property
    def _allowance(self) -> Allowance:
        return self._budget.allowance if self._budget is not None else UNLIMITED

    def _apply_priorities(self) -> None:
        new_priorities, self._new_priorities = self._new_priorities, {}
        waiting = []
        for request_id, priority in new_priorities.items():
            request = self.requests.get(request_id)
            if request is None or request.priority == priority:
                continue
            request.priority = priority
            if request.status is RequestStatus.RUNNING:
                self._is_running_in_order = False
            else:
                waiting.append(request)
        for queue in self._queues:
            queue.rank_anew(waiting)
        if waiting and self._keeper is not None:
            self._keeper.rank_anew({each.request_id: each.priority for each in waiting})

    def _make_way(self) -> None:
        displacement = self._choose_displaced()
        # One that is put off step after step counts once.
        self._num_put_off += len({*displacement.put_off} - {*self._put_off})
        self._put_off = displacement.put_off
        for request_id in displacement.victims:
            self._leave_running(self.requests[request_id])
        for request_id in displacement.held:
            # vLLM's own way to leave a running request out of a step: the step that is about to
            # start gets number current_step + 1.
            self.requests[request_id].next_decode_eligible_step = self.current_step + 2

    def _copy_ahead(self) -> None:
        """While there is pressure, have those copied that are likely to be displaced next."""
        if self._keeper is None or not self.running:
            return
        num_free = self.kv_cache_manager.block_pool.get_num_free_blocks()
        if self._is_anybody_left_waiting or num_free < LOW_BLOCKS_SHARE * self._num_usable_blocks:
            likely_victims = (
                one
                for one in islice(self._worst_first(), NUM_LIKELY_VICTIMS)
                if one.request_id not in self._unswitchable
            )
            self._keeper.copy_ahead(likely_victims, self.kv_cache_manager.get_block_ids)

    # --- keeping KV, what it costs, and counts ------------------------------------------------

    def _keep(self, request: Request) -> bool:
        if self._keeper is None:
            return False
        if request.request_id in self._unswitchable or not self._keeper.num_host_blocks:
            self._num_unswitchable += 1
            return False
        swap_s = self._keeper.predicted_swap_s(self._num_computed_blocks(request))
        if swap_s > self._costs.recompute_s(request.num_computed_tokens):
            self._num_cheaper_recomputes += 1
            return False
        return self._keeper.swap_out(request, self._block_ids(request))

    def _quantum_end(self, request: Request) -> int:
        """The first step in which a request that is admitted now may lose its place again."""
        switch_s = 0.0
        if self._keeper is not None:
            switch_s = min(
                self._keeper.predicted_swap_s(self._num_computed_blocks(request)),
                self._costs.recompute_s(request.num_computed_tokens),
            )
        return self.current_step + quantum_steps(switch_s, self._costs.typical_step_s)

    def _reload_token_s(self) -> float:
        """What a token's KV takes that is not on the device any more; 0 while unknown."""
        load_s = self._keeper.predicted_load_s(1) / self._block_sizes[0] if self._keeper else 0.0
        token_s = min(load_s or inf, self._costs.recompute_s(1))
        return token_s if isfinite(token_s) else 0.0

    def _num_computed_blocks(self, request: Request) -> int:
        return sum([cdiv(request.num_computed_tokens, size) for size in self._block_sizes])

    @property
    def _num_usable_blocks(self) -> int:
        return self.kv_cache_manager.block_pool.num_gpu_blocks - 1  # one is vLLM's null block

    def _learn_costs(self, output: SchedulerOutput) -> None:
        """How long the step took whose output is back: since it began, or the one before ended."""
        now_s, begun_s = time.monotonic(), self._steps_begun_s.popleft()
        if output.total_num_scheduled_tokens:
            num_decodes = list(output.num_scheduled_tokens.values()).count(1)
            self._costs.record(
                prefill_tokens=output.total_num_scheduled_tokens - num_decodes,
                decodes=num_decodes,
                step_s=now_s - max(begun_s, self._last_output_s),
            )
        self._last_output_s = now_s

    def _count_recomputed(self, output: SchedulerOutput) -> None:
        scheduled = output.num_scheduled_tokens
        for request_id in self._catching_up & scheduled.keys():
            end = self.requests[request_id].num_computed_tokens
            self._progress.catch_up(request_id, end - scheduled[request_id], end)
        self._catching_up &= self._progress.fallen_back

    def _switch_counts(self) -> SwitchCounts:
        counts = SwitchCounts(
            preemptions=self._num_preemptions,
            fallbacks=self._num_fallbacks,
            unswitchable=self._num_unswitchable,
            cheaper_recomputes=self._num_cheaper_recomputes,
            recomputed_tokens=self._progress.recomputed_tokens,
            put_off=self._num_put_off,
            pinned_blocks=self._held.num_pinned_blocks,
            **asdict(self._held.totals),
        )
        if self._keeper is None:
            return counts
        totals = self._keeper.swap_totals
        # What a keeper counts has the same names in the report.
        return structs.replace(
            counts, **{name: getattr(totals, name) for name in SwapTotals.__annotations__}
        )


class FastSwitchAsyncScheduler(FastSwitchScheduler, AsyncScheduler):
    """The same for engines that schedule a step while the device still runs the one before."""


def _extra_arg(request: Request, name: str, default: Any) -> Any:
    params = request.sampling_params
    extra_args = params.extra_args if params is not None else None
    return (extra_args or {}).get(name, default)


def _tenant(request: Request) -> str:
    tenant: str = _extra_arg(request, TENANT_ARG, DEFAULT_TENANT)
    return tenant


def _carried(request: Request) -> tuple[int, int]:
    """Tokens of the answer that another engine has put out, and how many of them the prompt has."""
    num_out, num_in_prompt = _extra_arg(request, CARRIED_ARG, (0, 0))
    return num_out, num_in_prompt


def _standing(request: Request) -> Standing:
    _, num_carried = _carried(request)
    return Standing(
        prompt_tokens=request.num_prompt_tokens - num_carried,
        computed_tokens=request.num_computed_tokens,
        output_tokens=request.num_output_tokens + num_carried,
        priority=request.priority,
        is_running=request.status is RequestStatus.RUNNING,
    )


def _is_switchable(request: Request) -> bool:
    """Whether a request's KV can be taken out of the engine's hands and given back.

    Not where the worker keeps state beside the KV (pooling, prompt logprobs, encoder outputs),
    nor where the prompt itself may still change (streaming sessions).
    """
    params = request.sampling_params
    return (
        params is not None
        and params.prompt_logprobs is None
        and not request.skip_reading_prefix_cache
        and not request.has_encoder_inputs
        and not request.resumable
    )
