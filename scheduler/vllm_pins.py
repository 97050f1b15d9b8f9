"""vLLM's scheduler, with turns whose KV stays on the device for the turn behind them.

Owns the references that keep a turn's blocks, and when they are given up: for a request that runs
or outranks the turn, when the time is over, once the next turn has them. What is then no longer
on the device is in host memory, where the keeper copied it as the turn ended. For how long a turn
is worth keeping is said from outside (``scheduler.tool_waits``).
"""

import time
from collections.abc import Callable, Hashable, Iterator
from itertools import chain, islice
from typing import Any

from vllm.utils.math_utils import cdiv
from vllm.v1.core.block_pool import BlockPool
from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request, RequestStatus

from scheduler.displacement import Displacement
from scheduler.pins import HeldTurn, HeldTurns, Outcome
from scheduler.vllm_displacement import DisplacingScheduler

# How long a turn is held until it is known whether it waits for a tool: several exchanges.
HOLD_S = 1.0
# Of all blocks: the rest is for requests that do not outrank whose turns are pinned.
MOST_PINNED_SHARE = 0.5
# Of those that wait, looked at in each step: seldom are more admitted in one.
NUM_NEXT = 4

_COMPLETE = (RequestStatus.FINISHED_STOPPED, RequestStatus.FINISHED_LENGTH_CAPPED)


class PinningScheduler(DisplacingScheduler):
    """A scheduler that knows which turns wait for a tool.

    Every block of a held turn has one reference more than requests have to it. Nobody who runs is
    preempted, and nobody who outranks a turn waits, for blocks that a turn holds.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held = HeldTurns()
        self._is_holding = False
        self._now_s: Callable[[], float] = time.monotonic

    def pin_turns(self, pins_s: dict[str, float] | None) -> None:
        """Keep the KV of these requests, which have ended, for so many seconds from now on.

        With None there will be no pins: turns are not held until it is known.
        """
        self._is_holding = pins_s is not None
        now_s = self._now_s()
        for request_id, ttl_s in (pins_s or {}).items():
            self._held.pin(request_id, ttl_s=ttl_s, now_s=now_s)
        for turn in self._held.too_many(int(MOST_PINNED_SHARE * self._pool.num_gpu_blocks)):
            self._end(turn, Outcome.RELEASED)
        self._end_expired()

    # --- vLLM's own methods, with something before or after ----------------------------------

    def add_request(self, request: Request) -> None:
        # More input for a streaming session begins no turn: that runs already.
        if request.session_id is not None and request.request_id not in self.requests:
            for turn in self._held.of(_conversation(request)):
                turn.next_turn = request
        super().add_request(request)

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:  # noqa: FBT001, FBT002
        output = super().schedule(throttle_prefills)
        if self._held:
            for new in output.scheduled_new_reqs:
                self._end_awaited(self.requests[new.req_id])
            if not output.total_num_scheduled_tokens and not self.running:
                self._end_deadlock()
        return output

    def _choose_displaced(self) -> Displacement:
        if self._held:
            self._end_expired()
            self._make_room_for_running()
            self._make_room_for_waiting()
        return super()._choose_displaced()

    def _free_request(
        self,
        request: Request,
        delay_free_blocks: bool = False,  # noqa: FBT001, FBT002
    ) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
        if request.session_id is not None:
            self._end_awaited(request)
            if self._is_holding and request.status in _COMPLETE:
                self._hold(request)
        return super()._free_request(request, delay_free_blocks)

    def reset_prefix_cache(
        self,
        reset_running_requests: bool = False,  # noqa: FBT001, FBT002
        reset_connector: bool = False,  # noqa: FBT001, FBT002
    ) -> bool:
        self._end_all(Outcome.WASTED)
        return super().reset_prefix_cache(reset_running_requests, reset_connector)

    def _handle_invalid_blocks(
        self,
        invalid_block_ids: set[int],
        num_scheduled_tokens: dict[str, int],
    ) -> set[str]:
        # Nothing that is cached is found again after this.
        self._end_all(Outcome.WASTED)
        return super()._handle_invalid_blocks(invalid_block_ids, num_scheduled_tokens)

    # --- holding --------------------------------------------------------------------------------

    def _hold(self, request: Request) -> None:
        # What is not cached cannot be found by the next turn.
        blocks = [
            block
            for block in self._blocks(request)
            if block.block_hash is not None and not block.is_null
        ]
        if not blocks:
            return
        self._pool.touch(blocks)
        self._held.hold(
            HeldTurn(
                request.request_id,
                _conversation(request),
                request.priority,
                request.arrival_time,
                blocks,
                until_s=self._now_s() + HOLD_S,
                last_step=request.last_sched_seq,
            )
        )

    def _end(self, turn: HeldTurn, outcome: Outcome) -> None:
        self._held.end(turn, outcome, self._now_s())
        # The end of a context goes first. A step in flight may still write its blocks: vLLM has
        # them wait for it.
        self._free_cow_retained_blocks(list(reversed(turn.blocks)), turn.last_step)

    def _end_expired(self) -> None:
        for turn in self._held.expired(self._now_s()):
            self._end(turn, Outcome.WASTED)

    def _end_awaited(self, request: Request) -> None:
        """A turn's next one runs, with blocks of its own, or has ended before it ever did."""
        has_run = not request.is_finished()
        for turn in self._held.of(_conversation(request)):
            if turn.next_turn is request:
                is_of_use = has_run and self._goes_on_from(request, turn)
                self._end(turn, Outcome.HIT if is_of_use else Outcome.WASTED)

    def _goes_on_from(self, request: Request, turn: HeldTurn) -> bool:
        """Whether a request has most of a turn's blocks: the start alone, many may have."""
        table = {block.block_id for block in self._blocks(request)}
        return 2 * sum(block.block_id in table for block in turn.blocks) >= len(turn.blocks)

    def _end_all(self, outcome: Outcome) -> None:
        for turn in self._held.worst_first():
            self._end(turn, outcome)

    # --- making room ----------------------------------------------------------------------------

    def _make_room_for_running(self) -> None:
        most = len(self.running) + cdiv(self._token_budget, min(self._block_sizes))
        if most <= self._pool.get_num_free_blocks():
            return
        for turn in self._held.worst_first():
            if self._room().num_blocks >= 0:
                return
            self._end(turn, Outcome.RELEASED)

    def _make_room_for_waiting(self) -> None:
        """Those next in line, as far as they outrank a turn, do not wait for its blocks."""
        num_before = 0  # blocks that go to those before in the line
        for request in islice(self._next_in_line(), NUM_NEXT):
            if not self._has_slot_for(request):
                return
            num_wanted, num_lacking = self._num_wanted_and_lacking_blocks(request)
            outranked = self._held.outranked_by(request, (request.priority, request.arrival_time))
            is_enough = num_before + num_lacking <= sum(len(turn.blocks) for turn in outranked)
            if not is_enough and not self._outranks_running(request):
                return
            for turn in outranked:
                if num_before + num_lacking <= 0:
                    break
                self._end(turn, Outcome.RELEASED)
                # It may have to take for itself what it had in common with the turn.
                num_wanted, num_lacking = self._num_wanted_and_lacking_blocks(request)
            num_before += num_wanted

    def _end_deadlock(self) -> None:
        """Nobody runs, and those that wait outrank nobody: whatever holds them up has to go."""
        if next(self._next_in_line(), None) is not None:
            self._end_all(Outcome.RELEASED)

    def _next_in_line(self) -> Iterator[Request]:
        return chain.from_iterable(map(self._ready, self._queues))

    def _has_slot_for(self, request: Request) -> bool:
        return (
            self._num_free_slots > 0
            or request.request_id in self._slot_keepers
            or self._outranks_running(request)
        )

    def _outranks_running(self, request: Request) -> bool:
        return bool(self.running) and request.priority < self._worst_priority

    def _num_wanted_and_lacking_blocks(self, request: Request) -> tuple[int, int]:
        """What a request needs to be admitted, and how much of that is not there; often below 0."""
        if request.num_computed_tokens:
            waiting = self._describe_holder(request)
        elif (newcomer := next(self._describe_newcomer(request), None)) is not None:
            waiting = newcomer
        else:
            return 0, 0  # what it will load is not known yet
        room = self._room()
        num_kept_free = room.watermark_blocks if self.running else 0
        num_kept_free += room.reserved_blocks if waiting.is_load else 0
        return waiting.num_blocks, waiting.num_blocks + num_kept_free - room.num_blocks

    @property
    def _pool(self) -> BlockPool:
        return self.kv_cache_manager.block_pool


def _conversation(request: Request) -> Hashable:
    """Without the same salt its next turn could not use the KV: so it tells tenants apart too."""
    return request.cache_salt, request.session_id
