"""The connector beside vLLM's scheduler: from its requests and outputs to swap plans and back.

Owns which requests are being loaded, what to copy ahead, and the choice between waiting for a
load and going on beside it. What is kept for whom stands in ``kv.swap``.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from time import perf_counter
from typing import NamedTuple

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.request import Request

from kv.block_groups import BlockGroupPool
from kv.fetching import Fetches
from kv.host_cache import HostCache, Key
from kv.neighbours import Neighbours
from kv.settings import SwapSettings
from kv.shared_host import OpenedIndex
from kv.single_blocks import SingleBlockPool
from kv.swap import RequestKV, SwapPlanner, SwapTotals
from kv.swap_manager import SwapReport
from kv.swap_plan import Direction, SwapPlan
from kv.swap_timing import SwapTiming

# Copies that nobody waits for may take this share of the time, and be so many steps late.
_AHEAD_SHARE = 0.1
_AHEAD_STEPS = 4
_FIRST_AHEAD_BLOCKS = 32  # a step, while no rates are known


class _Load(NamedTuple):
    """A load that vLLM was offered: tokens ``first`` to ``end - 1``."""

    first: int
    end: int
    is_async: bool


class SwapPlanning:
    """What vLLM's scheduler asks of the connector, where KV can be swapped."""

    def __init__(
        self,
        settings: SwapSettings,
        *,
        num_host_blocks: int,
        block_tokens: int,
        is_prefix_caching: bool,
        opened: OpenedIndex | None = None,
    ) -> None:
        """``opened`` is the index of a pool that may outlive this engine."""
        make_pool = BlockGroupPool if settings.groups else SingleBlockPool
        pool = make_pool("host", num_host_blocks)
        cache = HostCache(pool, opened.index if opened else None)
        self._planner = SwapPlanner(cache, block_tokens, reuse=settings.reuse)
        self._opened = opened
        self._fetches: Fetches | None = None
        if opened:
            self._planner.adopt(opened.held)
            self._fetches = Fetches(
                self._planner,
                Neighbours(opened.shape),
                num_workers=len(opened.shape.ranks),
                block_tokens=block_tokens,
            )
        self.totals.refused_pools = settings.refused_pools + (
            opened.is_refused if opened else settings.pool is not None
        )
        self._settings = settings
        self._block_tokens = block_tokens
        self._is_prefix_caching = is_prefix_caching
        self._timing = SwapTiming()
        self._offered: dict[str, _Load] = {}
        self._loading: dict[str, Sequence[Key]] = {}  # by request, the blocks on their way
        self._keys_loading: set[Key] = set()
        self._num_ahead: dict[str, int] = {}  # blocks known to be in host memory, by request
        self._num_pending_blocks = 0
        self._last_step = (0, perf_counter())  # requests in it, and when it was scheduled
        self._wait_s = 0.0  # since then

    @property
    def totals(self) -> SwapTotals:
        return self._planner.totals

    @property
    def num_host_blocks(self) -> int:
        return self._planner.num_host_blocks

    @property
    def num_host_blocks_used(self) -> int:
        return self._planner.num_host_blocks_used

    def rank_anew(self, priorities: Mapping[str, int]) -> None:
        self._planner.rank_anew(priorities)

    def close(self) -> None:
        """Let go of the pool; what it holds stays."""
        if self._opened:
            self._opened.file.close()

    # --- leaving ------------------------------------------------------------------------------

    def swap_out(self, request: Request, device_blocks: Sequence[int]) -> bool:
        self._num_ahead.pop(request.request_id, None)
        return self._planner.swap_out(self._kv(request, device_blocks))

    def copy_ahead(
        self,
        likely_victims: Iterable[Request],
        device_blocks_of: Callable[[str], Sequence[int]],
    ) -> None:
        """Send full blocks of requests that may have to leave, as far as it costs nobody.

        In most steps few have any to send, so block tables are asked for by request id.
        """
        if not self._settings.copy_ahead:
            return
        num_left = 0
        for index, request in enumerate(filter(self._has_more_to_send, likely_victims)):
            if not index:
                num_left = self._num_blocks_ahead()
            if num_left <= 0:
                return
            first = self._num_ahead.get(request.request_id, 0)
            before = self.totals.blocks_ahead
            kv = self._kv(request, device_blocks_of(request.request_id))
            end = self._planner.copy_ahead(kv, first, at_most=num_left)
            self._num_ahead[request.request_id] = end
            num_left -= self.totals.blocks_ahead - before
            if num_left <= 0 or self._has_more_to_send(request):
                return

    def _has_more_to_send(self, request: Request) -> bool:
        num_ahead = self._num_ahead.get(request.request_id, 0)
        # Asked of many in each step: most answers need no look at the keys.
        if num_ahead >= request.num_computed_tokens // self._block_tokens:
            return False
        return num_ahead < len(self._keys(request))

    def finish(self, request: Request, device_blocks: Sequence[int]) -> None:
        """A request has ended: its KV may be of use to the conversation's next turn."""
        self._offered.pop(request.request_id, None)
        self._num_ahead.pop(request.request_id, None)
        if self._fetches:
            self._fetches.may_ask_again(request.request_id)
        is_loaded = request.request_id not in self._loading
        self._end_load(request.request_id)
        if is_loaded and self._settings.reuse and self._is_prefix_caching:
            self._planner.keep_finished(self._kv(request, device_blocks))
        elif self._is_prefix_caching:
            self._planner.drop(request.request_id)
        else:
            self._planner.end(request.request_id, self._keys(request))

    def forget_recent(self) -> None:
        self._num_ahead.clear()
        self._planner.forget_recent()

    def forget_all(self) -> None:
        """From now on KV may be of other weights: it is nobody else's, and theirs is not ours."""
        self._num_ahead.clear()
        self._planner.forget_all()
        self._planner.leave_index()
        if self._fetches:
            self._fetches.stop()

    # --- coming back --------------------------------------------------------------------------

    def offer(self, request: Request, num_computed_tokens: int) -> tuple[int | None, bool]:
        """How many tokens behind those computed can be loaded, and whether beside the step.

        None: not now, as another request is bringing the same blocks, or they are being fetched
        from a neighbour. What neighbours have is fetched before anything is offered.
        """
        first_block = num_computed_tokens // self._block_tokens
        keys = self._keys(request)
        if self._are_coming(keys[first_block : first_block + 1]):
            return None, False  # many may wait for one prefix: told before anything is looked up
        num_kept = self._planner.num_kept_tokens(request.request_id)
        num_found = self._planner.num_found_blocks(keys, first_block)
        end = max(num_kept, (first_block + num_found) * self._block_tokens)
        if self._fetches and self._fetches.begin(
            request.request_id, keys, -(-end // self._block_tokens), request.priority
        ):
            return None, False
        # The last token is always computed: its logits are what the next one is sampled from.
        end = min(end, request.num_tokens - 1)
        if end <= num_computed_tokens:
            self._offered.pop(request.request_id, None)
            return 0, False
        end_block = -(-end // self._block_tokens)
        if self._are_coming(keys[first_block:end_block]):
            return None, False
        num_blocks = end_block - first_block
        is_async = self._settings.threads and self._timing.is_worth_going_on(num_blocks)
        self._offered[request.request_id] = _Load(num_computed_tokens, end, is_async)
        return end - num_computed_tokens, is_async

    def accept(self, request: Request, device_blocks: Sequence[int], num_tokens: int) -> None:
        """The request was given blocks, and is to load ``num_tokens`` of what it was offered."""
        load = self._offered.pop(request.request_id, None)
        if self._fetches:
            self._fetches.may_ask_again(request.request_id)
        if not num_tokens:
            # The prefix cache still has it all, or vLLM does not want it.
            self._planner.drop(request.request_id)
            return
        assert load is not None
        assert num_tokens == load.end - load.first
        self._planner.swap_in(
            self._kv(request, device_blocks),
            first_token=load.first,
            end_token=load.end,
            is_async=load.is_async,
        )
        first, end = load.first // self._block_tokens, -(-load.end // self._block_tokens)
        if load.is_async:
            keys = self._keys(request)[first:end]
            self._loading[request.request_id] = keys
            self._keys_loading.update(keys)
        else:
            self._timing.plan_wait(end - first)

    def predicted_swap_s(self, num_blocks: int) -> float:
        return self._timing.engine_s(num_blocks)

    def predicted_load_s(self, num_blocks: int) -> float:
        return self._timing.in_s(num_blocks)

    # --- step by step -------------------------------------------------------------------------

    def take_plan(self, output: SchedulerOutput) -> SwapPlan:
        """The step's copies; called once for each step."""
        num_requests, begin_s = self._last_step
        now_s = perf_counter()
        if num_requests:
            self._timing.add_step(num_requests, now_s - begin_s, self._wait_s)
            self._wait_s = 0.0
        self._last_step = (len(output.num_scheduled_tokens), now_s)
        return self._planner.take_plan(list(_written_blocks(output, self._block_tokens)))

    def hear(self, report: SwapReport | None, landed: Collection[str]) -> None:
        """What became of the plans so far."""
        for request_id in landed:
            self._end_load(request_id)
        self._num_pending_blocks = report.num_pending_blocks if report else 0
        if report is None:
            return
        totals = self.totals
        totals.stall_s += report.stall_s
        self._wait_s += report.stall_s
        totals.conflicts += report.conflicts
        totals.descriptors_out += report.descriptors[Direction.OUT]
        totals.descriptors_in += report.descriptors[Direction.IN]
        totals.failed_blocks += len(report.failed_host_blocks)
        for seconds in report.load_waits_s:
            totals.add_load_wait(seconds)
        if num_blocks := report.blocks[Direction.OUT] + report.blocks[Direction.IN]:
            self._timing.add_wait(num_blocks, report.stall_s)
        if report.blocks[Direction.OUT]:
            self._timing.add_out(report.blocks[Direction.OUT], report.busy_s[Direction.OUT])
        if report.blocks[Direction.IN]:
            self._timing.add_in(report.blocks[Direction.IN], report.busy_s[Direction.IN])
        if lost := report.failed_host_blocks | report.missed_host_blocks:
            self._num_ahead.clear()
            self._planner.forget(lost)
        if self._fetches:
            self._fetches.hear(report)

    def _are_coming(self, keys: Sequence[Key]) -> bool:
        """Whether any of these blocks is on its way to the device, or to host memory."""
        coming = (self._keys_loading, self._fetches.keys if self._fetches else ())
        return any(each and not each.isdisjoint(keys) for each in coming)

    def _end_load(self, request_id: str) -> None:
        self._keys_loading.difference_update(self._loading.pop(request_id, ()))

    def _num_blocks_ahead(self) -> int:
        """How many blocks may be sent now that may never be needed."""
        per_step = self._timing.num_blocks_out_in_step(_AHEAD_SHARE) or _FIRST_AHEAD_BLOCKS
        return per_step if self._num_pending_blocks <= _AHEAD_STEPS * per_step else 0

    def _kv(self, request: Request, device_blocks: Sequence[int]) -> RequestKV:
        return RequestKV(
            request.request_id,
            self._keys(request),
            device_blocks,
            request.num_computed_tokens,
            request.priority,
        )

    def _keys(self, request: Request) -> Sequence[Key]:
        if self._is_prefix_caching:
            return request.block_hashes
        # What the engine may not share between requests, we do not either.
        return [(request.request_id, index) for index in range(len(request.block_hashes))]


def _written_blocks(output: SchedulerOutput, block_tokens: int) -> Iterator[int]:
    """The device blocks that a step may write and did not have before."""
    for new in output.scheduled_new_reqs:
        for blocks in new.block_ids:
            yield from blocks[new.num_computed_tokens // block_tokens :]
    cached = output.scheduled_cached_reqs
    for request_id, block_ids, num_computed in zip(
        cached.req_ids, cached.new_block_ids, cached.num_computed_tokens, strict=True
    ):
        if block_ids is None:
            continue
        # Of a request that is back, these are all of its blocks.
        first = num_computed // block_tokens if request_id in cached.resumed_req_ids else 0
        yield from chain.from_iterable(blocks[first:] for blocks in block_ids)
