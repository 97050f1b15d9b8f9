"""vLLM's scheduler, with context switches: the one module here that touches vLLM.

Adds to vLLM 0.32 what its ``schedule()`` lacks, without copying it: priorities that change while
requests run, waiting requests that displace running ones (``scheduler.displacement`` says whom),
KV that is kept instead of thrown away when a request is preempted, and reports of progress. All
of it happens at the edges of vLLM's own methods; each private name leaned on is pinned by
``tests/scheduler/test_vllm_contract.py``.
"""

import heapq
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, Protocol, runtime_checkable

from msgspec import structs
from vllm.utils.math_utils import cdiv
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.request_queue import SchedulingPolicy
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.request import Request, RequestStatus

from scheduler.displacement import (
    NO_DISPLACEMENT,
    Displacement,
    Room,
    RunningRequest,
    WaitingRequest,
    choose_displaced,
    ranked,
)
from scheduler.progress import ProgressTracker, Standing
from scheduler.reports import EngineProgress, SwitchCounts

TENANT_ARG = "fastswitch_tenant"
DEFAULT_TENANT = "default"

BlockTables = tuple[list[int], ...]  # block ids, one list per KV cache group


class SwapTotals(Protocol):
    """What a keeper has moved since the engine started; ``SwitchCounts`` says what each means."""

    swaps_out: int
    swaps_in: int
    blocks_out: int
    blocks_in: int
    stall_s: float
    descriptors_out: int
    descriptors_in: int
    blocks_ahead: int
    blocks_spared: int
    async_swaps_in: int
    conflicts: int
    evicted_blocks: int
    lost_copies: int
    failed_blocks: int


@runtime_checkable
class KVKeeper(Protocol):
    """Something that can keep a preempted request's KV; the engine's connector may be one.

    How the KV comes back is between it and vLLM: a connector is asked for it on readmission.
    """

    @property
    def swap_totals(self) -> SwapTotals: ...

    @property
    def num_host_blocks(self) -> int: ...

    @property
    def num_host_blocks_used(self) -> int: ...

    def swap_out(self, request: Request, block_ids: BlockTables) -> bool:
        """Keep the KV of the tokens computed so far; whether that is possible."""
        ...

    def copy_ahead(self, likely_victims: Iterable[tuple[Request, BlockTables]]) -> None:
        """Copy what has not been copied of these, first come first, as far as there is time."""
        ...

    def predicted_swap_s(self, num_blocks: int) -> float:
        """What the engine would lose by a swap of so many blocks, out and in; 0 if unknown."""
        ...

    def drop_copied_from(self, block_ids: Collection[int]) -> None: ...


class FastSwitchScheduler(Scheduler):
    """vLLM's scheduler with live priorities, displacement and swaps.

    Whenever a step is scheduled, ``running`` has decodes before prefills and each from best rank
    to worst: vLLM's own loop spends the step's tokens in that order, so no prefill, however well
    ranked, makes the others' streams pause (a decode takes one token).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.policy is not SchedulingPolicy.PRIORITY:
            msg = f"scheduling policy is {self.policy.value!r}: FastSwitch needs 'priority'"
            raise ValueError(msg)
        self._keeper: KVKeeper | None = (
            self.connector if isinstance(self.connector, KVKeeper) else None
        )
        self._progress = ProgressTracker()
        self._new_priorities: dict[str, int] = {}
        self._is_running_in_order = True
        self._block_sizes = [manager.block_size for manager in self._managers]
        self._num_preemptions = 0
        self._num_fallbacks = 0

    # --- what the service calls -------------------------------------------------------------

    def set_priorities(self, priorities: dict[str, int]) -> None:
        """Change the priorities of live requests from the next step on; unknown ids are ignored."""
        self._new_priorities.update(priorities)

    def take_progress(self, is_full: bool) -> EngineProgress:  # noqa: FBT001 - called by position
        """What moved since the last call, and where the engine stands; everything if asked."""
        if is_full:
            live = list(self.requests.values())
        else:
            moved = (self.requests.get(request_id) for request_id in self._progress.moved)
            live = [*self.running, *(one for one in moved if one is not None)]
        for request in live:
            self._progress.advance(request.request_id, _standing(request))
        movement = self._progress.take(is_full=is_full)
        num_running, num_waiting = self.get_request_counts()
        num_blocks = self.kv_cache_manager.block_pool.num_gpu_blocks - 1  # one is vLLM's null block
        num_free = self.kv_cache_manager.block_pool.get_num_free_blocks()
        return EngineProgress(
            step=self.current_step,
            is_full=is_full,
            live=movement.live,
            finished=movement.finished,
            num_running=num_running,
            num_waiting=num_waiting,
            blocks_used=num_blocks - num_free,
            blocks_total=num_blocks,
            host_blocks_used=self._keeper.num_host_blocks_used if self._keeper else 0,
            host_blocks_total=self._keeper.num_host_blocks if self._keeper else 0,
            switches=self._switch_counts(),
            tenant_service=self._progress.tenant_service if is_full else {},
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
            )
        super().add_request(request)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:  # noqa: FBT001, FBT002
        self._apply_priorities()
        self._order_running()
        self._make_way()
        has_prefills = bool(self._inflight_prefills)  # one may turn into a decode
        output = super().schedule(throttle_prefills)
        if (
            has_prefills
            or output.scheduled_new_reqs
            or output.scheduled_cached_reqs.resumed_req_ids
        ):
            self._is_running_in_order = False
        self._count_recomputed(output)
        return output

    def _preempt_request(
        self,
        request: Request,
        timestamp: float,
        drop_stale_output: bool = False,  # noqa: FBT001, FBT002
    ) -> None:
        num_computed = request.num_computed_tokens
        self._progress.advance(request.request_id, _standing(request))
        self._progress.fall_back(request.request_id, num_computed)
        self._num_preemptions += 1
        # Whoever drops the output in flight wants the KV behind it gone too.
        if num_computed and (drop_stale_output or not self._keep(request)):
            self._num_fallbacks += 1
        super()._preempt_request(request, timestamp, drop_stale_output)

    def reset_prefix_cache(
        self,
        reset_running_requests: bool = False,  # noqa: FBT001, FBT002
        reset_connector: bool = False,  # noqa: FBT001, FBT002
    ) -> bool:
        # Running requests lose their KV because it is no longer right (new weights): then what
        # was swapped out is not right either.
        return super().reset_prefix_cache(
            reset_running_requests,
            reset_connector or (reset_running_requests and self._keeper is not None),
        )

    def _free_request(
        self,
        request: Request,
        delay_free_blocks: bool = False,  # noqa: FBT001, FBT002
    ) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        self._progress.advance(request.request_id, _standing(request))
        self._progress.finish(request.request_id, str(request.get_finished_reason()))
        return super()._free_request(request, delay_free_blocks)

    def _handle_invalid_blocks(
        self,
        invalid_block_ids: set[int],
        num_scheduled_tokens: dict[str, int],
    ) -> set[str]:
        """A swap-in failed: whoever may have used such a block starts over or samples again.

        vLLM would leave the blocks in the prefix cache and with their holders until one of these
        has written them again, which may take it several steps, or never happen.
        """
        pool = self.kv_cache_manager.block_pool
        pool.evict_blocks(set(range(pool.num_gpu_blocks)))
        holders = [one for one in self.running if not invalid_block_ids.isdisjoint(self._ids(one))]
        for request in holders:
            self._leave_running(request, drop_stale_output=True)
        if self._keeper is not None:
            self._keeper.drop_copied_from(invalid_block_ids)
        # Preempted since, with output in flight: who held what when it was computed is not known.
        in_doubt = [one for one in self.waiting._heap if one.num_stale_output_tokens]
        for request in in_doubt:
            request.drop_stale_output = True
        return {request.request_id for request in (*holders, *in_doubt)}

    # --- priorities and displacement ----------------------------------------------------------

    def _apply_priorities(self) -> None:
        new_priorities, self._new_priorities = self._new_priorities, {}
        is_anybody_moved = False
        for request_id, priority in new_priorities.items():
            request = self.requests.get(request_id)
            if request is not None and request.priority != priority:
                request.priority = priority
                is_anybody_moved = True
        if is_anybody_moved:
            heapq.heapify(self.waiting._heap)
            heapq.heapify(self.kv_holding_waiting._heap)
            self._is_running_in_order = False

    def _order_running(self) -> None:
        if not self._is_running_in_order:
            self.running.sort(key=_turn)
            self._is_running_in_order = True

    def _make_way(self) -> None:
        displacement = self._choose_displaced()
        for request_id in displacement.victims:
            self._leave_running(self.requests[request_id])
        for request_id in displacement.held:
            # vLLM's own way to leave a running request out of a step: the step that is about to
            # start gets number current_step + 1.
            self.requests[request_id].next_decode_eligible_step = self.current_step + 2

    def _choose_displaced(self) -> Displacement:
        is_anybody_outranked = self._is_anybody_outranked()
        if not is_anybody_outranked and not self._may_lack_blocks():
            return NO_DISPLACEMENT
        worst_first = sorted(self.running, key=_rank, reverse=True)
        return choose_displaced(
            self._describe_waiting() if is_anybody_outranked else (),
            map(self._describe_running, worst_first),
            self._room(),
        )

    def _is_anybody_outranked(self) -> bool:
        """Whether a waiting request outranks a running one: in most steps, nobody does."""
        if self._pause_state is not PauseState.UNPAUSED:
            return False
        heaps = [queue._heap for queue in (self.waiting, self.kv_holding_waiting) if queue._heap]
        if not heaps or not self.running:
            return False
        worst = max(request.priority for request in self.running)
        return any(heap[0].priority < worst for heap in heaps)

    def _may_lack_blocks(self) -> bool:
        """Whether running requests may want more blocks than are free, and vLLM cannot help.

        Where steps are in flight it does not preempt those that take part in one, and the worst
        ranked might take part in every one while a better one waits for their blocks.
        """
        if not self.defer_block_free:
            return False
        most = len(self.running) + cdiv(self._token_budget, min(self._block_sizes))
        return most > self.kv_cache_manager.block_pool.get_num_free_blocks()

    def _leave_running(self, request: Request, *, drop_stale_output: bool = False) -> None:
        self.running.remove(request)
        # It may run again in the very next step, and the worker must be sent its tokens then.
        self.prev_step_scheduled_req_ids.discard(request.request_id)
        self._preempt_request(request, time.monotonic(), drop_stale_output)

    def _room(self) -> Room:
        num_active = len(self.running) + self.num_waiting_for_streaming_input
        num_blocks = self.kv_cache_manager.block_pool.get_num_free_blocks()
        # Given up, but a step in flight still writes them: theirs by the step after this one.
        num_blocks += sum(len(blocks) for _, blocks in self.deferred_frees)
        num_tokens = self._token_budget
        for request in self.running:
            num_wanted = self._num_wanted_tokens(request)
            num_tokens -= num_wanted
            num_blocks -= self._num_growth_blocks(request, num_wanted)
        return Room(
            num_running=len(self.running),
            num_slots=self.max_num_active_reqs - num_active,
            num_blocks=num_blocks,
            num_tokens=num_tokens,
            watermark_blocks=self.kv_cache_manager.watermark_blocks,
        )

    @property
    def _token_budget(self) -> int:
        return min(self.max_num_scheduled_tokens, self.scheduler_config.max_num_batched_tokens)

    def _describe_running(self, request: Request) -> RunningRequest:
        num_wanted = self._num_wanted_tokens(request)
        tables = [manager.req_to_blocks[request.request_id] for manager in self._managers]
        return RunningRequest(
            request.request_id,
            request.priority,
            list(chain.from_iterable(tables)),
            self._num_growth_blocks(request, num_wanted),
            num_wanted,
        )

    @property
    def _managers(self) -> Sequence[Any]:
        return self.kv_cache_manager.coordinator.single_type_managers

    def _num_wanted_tokens(self, request: Request) -> int:
        """How many tokens a running request takes of a step; asked of all that run, so quick."""
        if not request.is_prefill_chunk:
            return 1
        return self._step_tokens(request.num_tokens - request.num_computed_tokens)

    def _num_growth_blocks(self, request: Request, num_wanted_tokens: int) -> int:
        begin = request.num_computed_tokens
        end = begin + num_wanted_tokens
        return sum(cdiv(end, size) - cdiv(begin, size) for size in self._block_sizes)

    def _describe_waiting(self) -> Iterator[WaitingRequest]:
        """Those that vLLM could admit in this step, in its order: block holders come first."""
        for request in chain(ranked(self.kv_holding_waiting._heap), ranked(self.waiting._heap)):
            if self._is_ready(request):
                yield self._describe_one_waiting(request)

    def _describe_one_waiting(self, request: Request) -> WaitingRequest:
        cached, num_computed = self._computed_already(request)
        num_left = request.num_tokens - num_computed
        if self._keeper is not None:
            num_left -= self.connector.get_num_new_matched_tokens(request, num_computed)[0]
        num_tokens = self._step_tokens(num_left)
        end = request.num_tokens
        if not self.scheduler_reserve_full_isl:
            end -= num_left - num_tokens
        num_blocks = self.kv_cache_manager.coordinator.get_num_blocks_to_allocate(
            request_id=request.request_id,
            num_tokens=end,
            new_computed_blocks=cached,
            num_encoder_tokens=0,
            total_computed_tokens=num_computed,
            num_local_computed_tokens=num_computed,
            num_tokens_main_model=end,
            apply_admission_cap=True,
        )
        return WaitingRequest(
            request.request_id,
            request.priority,
            num_blocks,
            num_tokens,
            min_tokens=1 if self.scheduler_config.enable_chunked_prefill else num_left,
            cached_blocks=list(chain.from_iterable(cached)),
        )

    def _computed_already(self, request: Request) -> tuple[tuple[Sequence[Any], ...], int]:
        """Blocks of the prefix cache that a waiting request would start from, and how far."""
        if request.num_computed_tokens:  # it holds its blocks while it waits
            return self.kv_cache_manager.empty_kv_cache_blocks.blocks, request.num_computed_tokens
        cached, num_cached, *_ = self._get_local_prefix_cache_hit(request)
        return cached.blocks, num_cached

    def _step_tokens(self, num_left: int) -> int:
        """How many of its tokens a request would take of one step."""
        threshold = self.scheduler_config.long_prefill_token_threshold or num_left
        return min(num_left, threshold, self._token_budget)

    def _is_ready(self, request: Request) -> bool:
        """Whether vLLM would admit a waiting request if there were room."""
        if request.status is RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR:
            grammar = request.structured_output_request.grammar
            return grammar is not None and not isinstance(grammar, Exception)
        if request.status not in (RequestStatus.WAITING, RequestStatus.PREEMPTED):
            return False
        if request.num_stale_output_tokens and not request.drop_stale_output:
            return False
        return self._has_lora_slot(request)

    def _has_lora_slot(self, request: Request) -> bool:
        if not self.lora_config or not request.lora_request:
            return True
        loaded = {one.lora_request.lora_int_id for one in self.running if one.lora_request}
        loaded.add(request.lora_request.lora_int_id)
        return len(loaded) <= self.lora_config.max_loras

    # --- keeping KV, and counts ---------------------------------------------------------------

    def _keep(self, request: Request) -> bool:
        if self._keeper is None or not _is_switchable(request):
            return False
        return self._keeper.swap_out(
            request, self.kv_cache_manager.get_block_ids(request.request_id)
        )

    def _ids(self, request: Request) -> set[int]:
        return set(chain.from_iterable(self.kv_cache_manager.get_block_ids(request.request_id)))

    def _count_recomputed(self, output: SchedulerOutput) -> None:
        scheduled = output.num_scheduled_tokens
        for request_id in self._progress.fallen_back & scheduled.keys():
            end = self.requests[request_id].num_computed_tokens
            self._progress.catch_up(request_id, end - scheduled[request_id], end)

    def _switch_counts(self) -> SwitchCounts:
        counts = SwitchCounts(
            preemptions=self._num_preemptions,
            fallbacks=self._num_fallbacks,
            recomputed_tokens=self._progress.recomputed_tokens,
        )
        if self._keeper is None:
            return counts
        totals = self._keeper.swap_totals
        return structs.replace(
            counts,
            swaps_out=totals.swaps_out,
            swaps_in=totals.swaps_in,
            blocks_out=totals.blocks_out,
            blocks_in=totals.blocks_in,
            stall_s=totals.stall_s,
            descriptors_out=totals.descriptors_out,
            descriptors_in=totals.descriptors_in,
            blocks_ahead=totals.blocks_ahead,
            blocks_spared=totals.blocks_spared,
            async_swaps_in=totals.async_swaps_in,
            conflicts=totals.conflicts,
            evicted_blocks=totals.evicted_blocks,
            lost_copies=totals.lost_copies,
            failed_blocks=totals.failed_blocks,
        )


class FastSwitchAsyncScheduler(FastSwitchScheduler, AsyncScheduler):
    """The same for engines that schedule a step while the device still runs the one before."""


def _rank(request: Request) -> tuple[int, float]:
    return request.priority, request.arrival_time


def _turn(request: Request) -> tuple[bool, int, float]:
    return request.is_prefill_chunk, request.priority, request.arrival_time


def _tenant(request: Request) -> str:
    params = request.sampling_params
    extra_args = params.extra_args if params is not None else None
    return (extra_args or {}).get(TENANT_ARG, DEFAULT_TENANT)


def _standing(request: Request) -> Standing:
    return Standing(
        prompt_tokens=request.num_prompt_tokens,
        computed_tokens=request.num_computed_tokens,
        output_tokens=request.num_output_tokens,
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
