"""vLLM's scheduler, with what it lacks where KV is loaded beside the steps or fails to load.

Owns the slots of requests whose KV is on its way, and what happens to everybody who may have
used KV that is not right: of a load that failed, or of weights that have been exchanged.
"""

import time
from collections.abc import Iterator
from itertools import chain
from typing import Any

from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.metrics.stats import KV_FETCH_COMPLETED_WAITING, KV_FETCH_IN_PROGRESS
from vllm.v1.request import Request, RequestStatus


class LoadingScheduler(Scheduler):
    """vLLM's scheduler; a request that loads KV has a slot kept for it until it runs.

    Without, vLLM would begin to load for everybody who waits as long as one slot is free, and
    give that slot away meanwhile: blocks held by many that cannot run.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._slot_keepers: set[str] = set()
        super().__init__(*args, **kwargs)

    # vLLM reads it before each admission: what it says may change from one to the next.
    @property
    def max_num_active_reqs(self) -> int:
        """How many may run when the next in line is admitted.

        That is a holder of blocks while there is one that vLLM has not yet looked at in this
        step, and the slots that are kept are for them.
        """
        if self.kv_holding_waiting:
            return self._max_num_active_reqs
        return self._max_num_active_reqs - len(self._slot_keepers)

    @max_num_active_reqs.setter
    def max_num_active_reqs(self, number: int) -> None:
        self._max_num_active_reqs = number

    @property
    def _num_free_slots(self) -> int:
        num_active = len(self.running) + self.num_waiting_for_streaming_input
        return self._max_num_active_reqs - num_active - len(self._slot_keepers)

    def _set_kv_fetch_stage(self, request: Request, stage: str | None) -> None:
        super()._set_kv_fetch_stage(request, stage)
        if stage in (KV_FETCH_IN_PROGRESS, KV_FETCH_COMPLETED_WAITING):
            self._slot_keepers.add(request.request_id)
        else:
            self._slot_keepers.discard(request.request_id)

    def reset_prefix_cache(
        self,
        reset_running_requests: bool = False,  # noqa: FBT001, FBT002
        reset_connector: bool = False,  # noqa: FBT001, FBT002
    ) -> bool:
        holders = [one for one in self.kv_holding_waiting if _is_loading_or_loaded(one)]
        if not reset_running_requests or not (holders or self.defer_block_free):
            return super().reset_prefix_cache(reset_running_requests, reset_connector)
        # vLLM gives up here: blocks that a load or a step in flight writes cannot be had back yet.
        for request in list(self.running):
            self._leave_running(request, drop_stale_output=True)
        for request in holders:
            self._start_over(request)
        self._forget_cached_blocks()
        super().reset_prefix_cache(reset_connector=reset_connector)
        return not self.num_waiting_for_streaming_input

    def _update_waiting_for_remote_kv(self, request: Request) -> None:
        super()._update_waiting_for_remote_kv(request)
        if not request.num_computed_tokens:
            # It holds no blocks any more, so none may be kept free for it.
            self._inflight_prefills.discard(request)

    def _start_over(self, request: Request) -> None:
        """Have a holder of blocks give them up, or do so once its load has landed."""
        request.num_computed_tokens = 0
        if request.status is RequestStatus.WAITING_FOR_REMOTE_KVS:
            self.failed_recving_kv_req_ids.add(request.request_id)
            return
        self._free_request_blocks(request)
        self._inflight_prefills.discard(request)
        self._set_kv_fetch_stage(request, None)
        self.kv_holding_waiting.remove_request(request)
        self.waiting.add_request(request)

    def _handle_invalid_blocks(
        self,
        invalid_block_ids: set[int],
        num_scheduled_tokens: dict[str, int],
    ) -> set[str]:
        """A load failed: whoever may have used such a block starts over or samples again.

        vLLM would leave the blocks in the prefix cache and with their holders until one of these
        has written them again, which may take it several steps, or never happen.
        """
        self._forget_cached_blocks()
        for request in self._loading():
            # One by one: of several, vLLM would have the others rely on what the first repairs.
            failed, *_ = self._update_requests_with_invalid_blocks(
                [request], invalid_block_ids, {}, evict_blocks=False
            )
            self.failed_recving_kv_req_ids |= failed
        holders = [one for one in self.running if not invalid_block_ids.isdisjoint(self._ids(one))]
        for request in holders:
            self._leave_running(request, drop_stale_output=True)
        # Preempted since, with output in flight: who held what when it was computed is not known.
        in_doubt = [one for one in self.waiting if one.num_stale_output_tokens]
        for request in in_doubt:
            request.drop_stale_output = True
        return {request.request_id for request in (*holders, *in_doubt)}

    def _leave_running(self, request: Request, *, drop_stale_output: bool = False) -> None:
        # Who leaves is mostly among the last: looked for from there, it is found 10 us sooner.
        place = next(
            index for index in reversed(range(len(self.running))) if self.running[index] is request
        )
        del self.running[place]
        # It may run again in the very next step, and the worker must be sent its tokens then.
        self.prev_step_scheduled_req_ids.discard(request.request_id)
        self._preempt_request(request, time.monotonic(), drop_stale_output)

    def _loading(self) -> Iterator[Request]:
        for request in self.kv_holding_waiting:
            if request.status is RequestStatus.WAITING_FOR_REMOTE_KVS:
                yield request

    def _forget_cached_blocks(self) -> None:
        pool = self.kv_cache_manager.block_pool
        pool.evict_blocks(set(range(pool.num_gpu_blocks)))

    def _ids(self, request: Request) -> set[int]:
        return set(chain.from_iterable(self.kv_cache_manager.get_block_ids(request.request_id)))


def _is_loading_or_loaded(request: Request) -> bool:
    """Whether a holder of blocks that waits is no session between two of its turns."""
    return request.status is not RequestStatus.WAITING_FOR_STREAMING_REQ
