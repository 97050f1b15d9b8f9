"""vLLM's scheduler described as the plain values that ``scheduler.displacement`` chooses on.

Owns the order of ``running``, which requests are within their quantum, and what vLLM would do
with a waiting request if there were room. Changes nothing but that order: who carries a choice
out is ``scheduler.vllm_scheduler``.
"""

import heapq
from bisect import insort
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import partial
from itertools import chain, takewhile
from operator import attrgetter
from typing import Any

from vllm.utils.math_utils import cdiv
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.request import Request, RequestStatus

from scheduler.displacement import (
    NO_DISPLACEMENT,
    Displacement,
    Room,
    RunningRequest,
    WaitingRequest,
    choose_displaced,
)
from scheduler.switch_budget import UNLIMITED, Allowance
from scheduler.vllm_loads import LoadingScheduler
from scheduler.vllm_waiting import RankedQueue

rank = attrgetter("priority", "arrival_time")
_turn = attrgetter("is_prefill_chunk", "priority", "arrival_time")


class DisplacingScheduler(LoadingScheduler):
    """A scheduler that knows who has to make way.

    Once ``_order_running`` has been called, ``running`` has decodes before prefills and each from
    best rank to worst: vLLM's own loop spends the step's tokens in that order, so no prefill,
    however well ranked, makes the others' streams pause (a decode takes one token).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.waiting, self.kv_holding_waiting = RankedQueue(), RankedQueue()
        self._is_running_in_order = True  # but for the unsettled
        self._unsettled: set[str] = set()  # at the end of running: new there, or prefills
        self._quantum_ends: dict[str, int] = {}  # the first step after it, for all that run
        self._token_budget = min(
            self.max_num_scheduled_tokens, self.scheduler_config.max_num_batched_tokens
        )
        self._block_sizes = [manager.block_size for manager in self._managers]

    def _order_running(self) -> None:
        if not self._is_running_in_order:
            self.running.sort(key=_turn)
            self._is_running_in_order = True
        elif self._unsettled:
            self._settle()
        # A prefill may have turned into a decode by the next time.
        prefills = takewhile(attrgetter("is_prefill_chunk"), reversed(self.running))
        self._unsettled = {one.request_id for one in prefills}

    def _settle(self) -> None:
        """Put the unsettled in their places: in most steps they are few, where many run."""
        unsettled = []
        while self.running and self.running[-1].request_id in self._unsettled:
            unsettled.append(self.running.pop())
        prefills = [one for one in unsettled if one.is_prefill_chunk]
        for request in unsettled:
            if not request.is_prefill_chunk:
                insort(self.running, request, key=rank)
        self.running += sorted(prefills, key=rank)

    def _worst_first(self) -> Iterable[Request]:
        """Those that run, by rank alone; no more are looked at than are asked for."""
        if not self.running or not self.running[-1].is_prefill_chunk:
            return reversed(self.running)
        decodes, prefills = self._split_running()
        return heapq.merge(reversed(decodes), reversed(prefills), key=rank, reverse=True)

    @property
    def _worst_priority(self) -> int:
        return next(iter(self._worst_first())).priority

    def _split_running(self) -> tuple[Sequence[Request], Sequence[Request]]:
        num_decodes = len(self.running)
        while num_decodes and self.running[num_decodes - 1].is_prefill_chunk:
            num_decodes -= 1
        return self.running[:num_decodes], self.running[num_decodes:]

    def _choose_displaced(self) -> Displacement:
        is_anybody_outranked = self._is_anybody_outranked()
        if not is_anybody_outranked and not self._may_lack_blocks():
            return NO_DISPLACEMENT
        return choose_displaced(
            self._describe_waiting() if is_anybody_outranked else (),
            map(self._describe_running, self._worst_first()),
            self._room(),
            self._allowance,
        )

    @property
    def _allowance(self) -> Allowance:
        return UNLIMITED

    # --- whether there is anything to choose: in most steps there is not ----------------------

    def _is_anybody_outranked(self) -> bool:
        """Whether a waiting request has somebody to take the place or the tokens of."""
        if self._pause_state is not PauseState.UNPAUSED or not self.running:
            return False
        worst = self._worst_priority
        queues = (one for one in self._queues if one and one.best_priority < worst)
        first = (next(self._ready(queue), None) for queue in queues)
        return any(one is not None and self._has_anybody_in_reach(one) for one in first)

    def _has_anybody_in_reach(self, request: Request) -> bool:
        for one in self._worst_first():
            if one.priority <= request.priority:
                return False
            # A prefill may be held for a step even within its quantum.
            if not request.num_preemptions or one.is_prefill_chunk or not self._is_in_quantum(one):
                return True
        return False

    def _may_lack_blocks(self) -> bool:
        """Whether running requests may want more blocks than are free, and vLLM cannot help.

        Where steps are in flight it does not preempt those that take part in one, and the worst
        ranked might take part in every one while a better one waits for their blocks.
        """
        if not self.defer_block_free:
            return False
        most = len(self.running) + cdiv(self._token_budget, min(self._block_sizes))
        return most > self.kv_cache_manager.block_pool.get_num_free_blocks()

    def _is_in_quantum(self, request: Request) -> bool:
        # The step that is about to start gets number current_step + 1.
        return self.current_step + 1 < self._quantum_ends.get(request.request_id, 0)

    # --- those that run -------------------------------------------------------------------------

    def _room(self) -> Room:
        num_blocks = self.kv_cache_manager.block_pool.get_num_free_blocks()
        # Given up, but a step in flight still writes them: theirs by the step after this one.
        num_blocks += sum(len(blocks) for _, blocks in self.deferred_frees)
        decodes, prefills = self._split_running()
        # A decode takes one token, and at most one block of each kind.
        num_tokens = self._token_budget - len(decodes)
        num_blocks -= len(decodes) * len(self._block_sizes)
        for request in prefills:
            num_wanted = self._num_wanted_tokens(request)
            num_tokens -= num_wanted
            num_blocks -= self._num_growth_blocks(request, num_wanted)
        return Room(
            num_running=len(self.running),
            num_slots=self._num_free_slots,
            num_blocks=num_blocks,
            num_tokens=num_tokens,
            watermark_blocks=self.kv_cache_manager.watermark_blocks,
            reserved_blocks=sum(map(self._num_reserved_blocks, self._inflight_prefills)),
            count_more_blocks=partial(self._num_decodes_within_blocks, decodes),
        )

    def _num_decodes_within_blocks(self, decodes: Sequence[Request]) -> int:
        """How many of so many decodes need no new block in this step; summed over the kinds."""
        return sum(
            len(decodes) - [one.num_computed_tokens % size for one in decodes].count(0)
            for size in self._block_sizes
        )

    def _describe_running(self, request: Request) -> RunningRequest:
        num_wanted = self._num_wanted_tokens(request)
        is_reserving = request.is_prefill_chunk and request in self._inflight_prefills
        return RunningRequest(
            request.request_id,
            request.priority,
            self._blocks(request),
            self._num_growth_blocks(request, num_wanted),
            num_wanted,
            num_reserved_blocks=self._num_reserved_blocks(request) if is_reserving else 0,
            is_in_quantum=self._is_in_quantum(request),
        )

    def _blocks(self, request: Request) -> Sequence[Any]:
        tables = [manager.req_to_blocks[request.request_id] for manager in self._managers]
        return tables[0] if len(tables) == 1 else list(chain.from_iterable(tables))

    def _block_ids(self, request: Request) -> tuple[list[int], ...]:
        """As vLLM's manager says it, in less than half the time: asked for each victim."""
        return tuple(
            [block.block_id for block in manager.req_to_blocks[request.request_id]]
            for manager in self._managers
        )

    @property
    def _managers(self) -> Sequence[Any]:
        return self.kv_cache_manager.coordinator.single_type_managers

    def _num_wanted_tokens(self, request: Request) -> int:
        """How many tokens a running request takes of a step."""
        if not request.is_prefill_chunk:
            return 1
        return self._step_tokens(request.num_tokens - request.num_computed_tokens)

    def _num_growth_blocks(self, request: Request, num_wanted_tokens: int) -> int:
        begin = request.num_computed_tokens
        if num_wanted_tokens == 1:  # as with most
            return [begin % size for size in self._block_sizes].count(0)
        end = begin + num_wanted_tokens
        return sum(cdiv(end, size) - cdiv(begin, size) for size in self._block_sizes)

    def _num_reserved_blocks(self, request: Request) -> int:
        """Blocks that vLLM keeps for a prefill in flight, or a load, when others begin to load."""
        growth = 0
        if request.status is RequestStatus.RUNNING:
            growth = self._num_growth_blocks(request, self._num_wanted_tokens(request))
        return max(self._request_remaining_blocks(request) - growth, 0)

    # --- those that wait ------------------------------------------------------------------------

    @property
    def _queues(self) -> tuple[RankedQueue, RankedQueue]:
        """In the order of admission: vLLM drains those that hold blocks first."""
        return self.kv_holding_waiting, self.waiting

    def _describe_waiting(self) -> Iterator[WaitingRequest]:
        """Those that vLLM could admit in this step, in its order, as far as they outrank anybody.

        Holders come whomever they outrank.
        """
        worst = self._worst_priority
        for request in chain.from_iterable(map(self._ready, self._queues)):
            if request.num_computed_tokens:
                yield self._describe_holder(request)
            elif request.priority < worst:  # else it need not be described, which takes a while
                yield from self._describe_newcomer(request)
            else:
                return

    def _ready(self, queue: RankedQueue) -> Iterator[Request]:
        loras = self._running_loras()  # once for all that wait
        return (
            one
            for one in queue.best_first()
            if self._is_ready(one) and self._has_lora_slot(one, loras)
        )

    def _describe_holder(self, request: Request) -> WaitingRequest:
        """A request that waits with its blocks: its load has landed, or its session goes on.

        It has the rank of the best that waits behind it, which it would hold up.
        """
        num_computed = min(request.num_computed_tokens, request.num_tokens - 1)
        num_left = request.num_tokens - num_computed
        num_tokens = self._step_tokens(num_left)
        behind = next(self._ready(self.waiting), request)
        no_blocks = self.kv_cache_manager.empty_kv_cache_blocks.blocks
        return WaitingRequest(
            request.request_id,
            min(request.priority, behind.priority),
            self._num_blocks_for(
                request, no_blocks, num_computed, self._admission_end(request, num_left, num_tokens)
            ),
            num_tokens,
            min_tokens=self._min_tokens(num_left),
            was_displaced=request.num_preemptions > 0,
            is_holder=True,
            has_slot=request.request_id in self._slot_keepers,
        )

    def _describe_newcomer(self, request: Request) -> Iterator[WaitingRequest]:
        """A request without blocks, unless the connector cannot yet say what it will load."""
        cached, num_cached, *_ = self._get_local_prefix_cache_hit(request)
        num_loaded, is_load = self._num_loaded_tokens(request, num_cached)
        if num_loaded is None:
            return
        num_left = request.num_tokens - num_cached - num_loaded
        # A load computes nothing in this step, but vLLM begins none without a token to spend.
        num_tokens = 1 if is_load else self._step_tokens(num_left)
        end = request.num_tokens - num_left
        if not is_load or self.scheduler_reserve_full_isl:
            end = self._admission_end(request, num_left, num_tokens)
        yield WaitingRequest(
            request.request_id,
            request.priority,
            self._num_blocks_for(request, cached.blocks, num_cached, end),
            num_tokens,
            min_tokens=1 if is_load else self._min_tokens(num_left),
            cached_blocks=list(chain.from_iterable(cached.blocks)),
            was_displaced=request.num_preemptions > 0,
            is_load=is_load,
        )

    def _num_loaded_tokens(self, request: Request, num_cached: int) -> tuple[int | None, bool]:
        """Tokens to load beyond those cached, None if not known yet; and whether beside steps."""
        if self.connector is None or request.skip_reading_prefix_cache:
            return 0, False
        return self.connector.get_num_new_matched_tokens(request, num_cached)

    def _admission_end(self, request: Request, num_left: int, num_tokens: int) -> int:
        """Up to which token the free blocks must reach."""
        if self.scheduler_reserve_full_isl:
            return request.num_tokens
        return request.num_tokens - num_left + num_tokens

    def _num_blocks_for(
        self, request: Request, cached: tuple[Sequence[Any], ...], num_computed: int, end: int
    ) -> int:
        return self.kv_cache_manager.coordinator.get_num_blocks_to_allocate(
            request_id=request.request_id,
            num_tokens=end,
            new_computed_blocks=cached,
            num_encoder_tokens=0,
            total_computed_tokens=num_computed,
            num_local_computed_tokens=num_computed,
            num_tokens_main_model=end,
            apply_admission_cap=True,
        )

    def _min_tokens(self, num_left: int) -> int:
        return 1 if self.scheduler_config.enable_chunked_prefill else num_left

    def _step_tokens(self, num_left: int) -> int:
        """How many of its tokens a request would take of one step."""
        threshold = self.scheduler_config.long_prefill_token_threshold or num_left
        return min(num_left, threshold, self._token_budget)

    def _is_ready(self, request: Request) -> bool:
        """Whether vLLM would admit a waiting request if there were room."""
        if request.status is RequestStatus.WAITING_FOR_REMOTE_KVS:
            # What is left of a failed load may be nothing: then it is a newcomer after this step.
            is_landed = request.request_id in self.finished_recving_kv_req_ids
            return is_landed and request.num_computed_tokens > 0
        if request.status is RequestStatus.WAITING_FOR_STRUCTURED_OUTPUT_GRAMMAR:
            grammar = request.structured_output_request.grammar
            return grammar is not None and not isinstance(grammar, Exception)
        if request.status not in (RequestStatus.WAITING, RequestStatus.PREEMPTED):
            return False
        return not request.num_stale_output_tokens or request.drop_stale_output

    def _running_loras(self) -> Collection[int]:
        if not self.lora_config:
            return ()
        return {one.lora_request.lora_int_id for one in self.running if one.lora_request}

    def _has_lora_slot(self, request: Request, loras: Collection[int]) -> bool:
        if not self.lora_config or not request.lora_request:
            return True
        return request.lora_request.lora_int_id in loras or len(loras) < self.lora_config.max_loras
