"""What our scheduler relies on in vLLM's: one test per private thing, so a new release names it."""

import inspect
import time
from collections import deque
from pathlib import Path

import pytest
import torch
from vllm import EngineArgs, SamplingParams
from vllm.v1.core.kv_cache_utils import KVCacheBlock
from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.interface import PauseState
from vllm.v1.core.sched.request_queue import RequestQueue
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreEventType, FinishReason
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
from vllm.v1.request import Request, RequestStatus
from vllm.v1.structured_output import StructuredOutputManager

from scheduler.vllm_waiting import RankedQueue

BLOCK_TOKENS = 32


@pytest.fixture
def scheduler(tiny_model: Path) -> Scheduler:
    """vLLM's own scheduler, without an engine around it."""
    config = EngineArgs(
        model=str(tiny_model),
        max_model_len=512,
        max_num_seqs=4,
        block_size=BLOCK_TOKENS,
        enable_prefix_caching=False,
        scheduling_policy="priority",
    ).create_engine_config()
    config.cache_config.num_gpu_blocks = 64
    spec = FullAttentionSpec(
        block_size=BLOCK_TOKENS, num_kv_heads=2, head_size=32, dtype=torch.float32
    )
    kv_cache = KVCacheConfig(64, [], [KVCacheGroupSpec(["layer"], spec)])
    return Scheduler(config, kv_cache, StructuredOutputManager(config), BLOCK_TOKENS)


def request(name: str, *, priority: int = 0, arrival_s: float = 0.0) -> Request:
    return Request(
        name,
        prompt_token_ids=[1] * 40,
        sampling_params=SamplingParams(max_tokens=8),
        pooling_params=None,
        priority=priority,
        arrival_time=arrival_s,
    )


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("schedule", ["self", "throttle_prefills"]),
        ("add_request", ["self", "request"]),
        ("_preempt_request", ["self", "request", "timestamp", "drop_stale_output"]),
        ("_free_request", ["self", "request", "delay_free_blocks"]),
        ("_handle_invalid_blocks", ["self", "invalid_block_ids", "num_scheduled_tokens"]),
        ("reset_prefix_cache", ["self", "reset_running_requests", "reset_connector"]),
        ("_get_local_prefix_cache_hit", ["self", "request"]),
        ("get_request_counts", ["self"]),
        ("update_from_output", ["self", "scheduler_output", "model_runner_output"]),
        ("_set_kv_fetch_stage", ["self", "request", "stage"]),
        ("_free_request_blocks", ["self", "request"]),
        ("_free_cow_retained_blocks", ["self", "blocks", "fence_seq"]),
        ("_request_remaining_blocks", ["self", "request"]),
        (
            "_update_requests_with_invalid_blocks",
            ["self", "requests", "invalid_block_ids", "num_scheduled_tokens", "evict_blocks"],
        ),
    ],
)
def test_methods_take_what_we_pass_on(method: str, parameters: list[str]) -> None:
    """The methods we override or call have these parameters, in this order."""
    assert list(inspect.signature(getattr(Scheduler, method)).parameters) == parameters


def test_the_async_scheduler_overrides_none_of_ours() -> None:
    """Our class stands before AsyncScheduler: a method of its own would be skipped or doubled."""
    ours = {
        "schedule",
        "add_request",
        "_preempt_request",
        "_free_request",
        "_handle_invalid_blocks",
        "_set_kv_fetch_stage",
        "reset_prefix_cache",
        "update_from_output",
    }

    assert issubclass(AsyncScheduler, Scheduler)
    assert not ours & vars(AsyncScheduler).keys()


def test_waiting_queues_are_asked_for_no_more_than_ours_have(scheduler: Scheduler) -> None:
    """Both are reached by the methods of vLLM's interface alone, best rank first."""
    for name, priority, arrival_s in (("a", 2, 0.0), ("b", 1, 5.0), ("c", 1, 4.0)):
        scheduler.add_request(request(name, priority=priority, arrival_s=arrival_s))

    assert [one.request_id for one in scheduler.waiting] == ["c", "b", "a"]
    assert not scheduler.kv_holding_waiting
    assert RequestQueue.__abstractmethods__ <= vars(RankedQueue).keys()
    source = inspect.getsource(inspect.getmodule(Scheduler) or Scheduler)
    assert "._heap" not in source


def test_a_request_can_be_left_out_of_a_step(scheduler: Scheduler) -> None:
    """``next_decode_eligible_step`` past the coming step keeps a running request out of it only."""
    scheduler.add_request(request("a"))
    scheduler.add_request(request("b"))
    scheduler.schedule()
    for one in scheduler.running:
        one.append_output_token_ids(1)

    scheduler.requests["a"].next_decode_eligible_step = scheduler.current_step + 2

    assert scheduler.schedule().num_scheduled_tokens.keys() == {"b"}
    assert "a" in scheduler.schedule().num_scheduled_tokens


def test_preemption_starts_over_from_the_waiting_queue(scheduler: Scheduler) -> None:
    """A preempted request loses its blocks and its count, and waits with the rest."""
    scheduler.add_request(request("a"))
    scheduler.schedule()
    [victim] = scheduler.running
    scheduler.running.remove(victim)
    num_free = scheduler.kv_cache_manager.block_pool.get_num_free_blocks()

    scheduler._preempt_request(victim, 0.0)

    assert victim.status is RequestStatus.PREEMPTED
    assert (victim.num_computed_tokens, victim.num_output_placeholders) == (0, 0)
    assert list(scheduler.waiting) == [victim]
    assert scheduler.kv_cache_manager.block_pool.get_num_free_blocks() == num_free + 2


def test_block_tables_are_lists_of_counted_blocks(scheduler: Scheduler) -> None:
    """A manager has each request's blocks by id, and a block knows how many requests use it."""
    scheduler.add_request(request("a"))
    scheduler.schedule()

    [manager] = scheduler.kv_cache_manager.coordinator.single_type_managers
    table = manager.req_to_blocks["a"]

    assert manager.block_size == BLOCK_TOKENS
    assert all(isinstance(block, KVCacheBlock) and block.ref_cnt == 1 for block in table)
    assert scheduler.kv_cache_manager.get_block_ids("a") == ([one.block_id for one in table],)


def test_the_pool_counts_its_null_block(scheduler: Scheduler) -> None:
    """One block of the pool is never handed out."""
    pool = scheduler.kv_cache_manager.block_pool

    assert (pool.num_gpu_blocks, pool.get_num_free_blocks()) == (64, 63)
    pool.evict_blocks({0, 1})


def test_blocks_can_be_kept_by_a_reference(scheduler: Scheduler) -> None:
    """Touched blocks are not free once their request is; given back behind a step, they are."""
    scheduler.add_request(request("a"))
    scheduler.schedule()
    [manager] = scheduler.kv_cache_manager.coordinator.single_type_managers
    pool, table = scheduler.kv_cache_manager.block_pool, list(manager.req_to_blocks["a"])

    pool.touch(table)
    scheduler.finish_requests("a", RequestStatus.FINISHED_ABORTED)
    assert (pool.get_num_free_blocks(), [block.ref_cnt for block in table]) == (61, [1, 1])
    assert [block.block_hash for block in table] == [None, None]  # without a prefix cache
    assert not any(block.is_null for block in table)

    scheduler._free_cow_retained_blocks(table, fence_seq=0)
    assert pool.get_num_free_blocks() == 63


def test_a_retained_block_waits_for_steps_in_flight(scheduler: Scheduler) -> None:
    """Where frees are deferred, those behind a step that is still under way are too."""
    scheduler.defer_block_free = True
    blocks = scheduler.kv_cache_manager.block_pool.get_new_blocks(2)

    scheduler._free_cow_retained_blocks(blocks, fence_seq=1)

    assert list(scheduler.deferred_frees) == [(1, blocks[::-1])]


def test_what_an_admission_needs_can_be_asked_beforehand(scheduler: Scheduler) -> None:
    """The manager says how many blocks a waiting request will take, and changes nothing."""
    one = request("a")
    cached, num_cached, *_ = scheduler._get_local_prefix_cache_hit(one)

    num_blocks = scheduler.kv_cache_manager.coordinator.get_num_blocks_to_allocate(
        request_id="a",
        num_tokens=40,
        new_computed_blocks=cached.blocks,
        num_encoder_tokens=0,
        total_computed_tokens=num_cached,
        num_local_computed_tokens=num_cached,
        num_tokens_main_model=40,
        apply_admission_cap=True,
    )

    assert (num_blocks, num_cached) == (2, 0)
    assert cached.blocks == scheduler.kv_cache_manager.empty_kv_cache_blocks.blocks


def test_the_state_we_read_and_write_is_there(scheduler: Scheduler) -> None:
    """The scheduler's attributes that we use have the kinds of values that we take them for."""
    assert scheduler._pause_state is PauseState.UNPAUSED
    assert scheduler.deferred_frees == deque()
    assert scheduler.prev_step_scheduled_req_ids == set()
    assert scheduler.num_waiting_for_streaming_input == 0
    assert vars(scheduler)["max_num_active_reqs"] == 4  # ours makes a property of it
    assert (scheduler.finished_recving_kv_req_ids, scheduler.failed_recving_kv_req_ids) == (
        set(),
        set(),
    )
    assert scheduler._inflight_prefills == set()
    assert scheduler.max_num_scheduled_tokens > 0
    assert scheduler.scheduler_reserve_full_isl in (True, False)
    assert scheduler.kv_cache_manager.watermark_blocks == 0
    assert scheduler.current_step == 0
    assert (scheduler.connector, scheduler.lora_config) == (None, None)


def test_deferred_frees_are_fences_and_blocks() -> None:
    """Blocks given up while a step in flight writes them wait in pairs of step and blocks."""
    source = inspect.getsource(Scheduler._free_request_blocks)

    assert "self.deferred_frees.append((self.sched_step_seq, blocks))" in source


def test_a_steps_tokens_are_read_anew_in_each_step() -> None:
    """The running have them first, those that wait what is left."""
    source = inspect.getsource(Scheduler.schedule)

    assert "token_budget = self.max_num_scheduled_tokens" in source
    assert source.index("while token_budget > 0:") > source.index("token_budget -=")


def test_slots_are_counted_anew_before_each_admission() -> None:
    """The limit is read inside the loop over those that wait, and block holders come first."""
    source = inspect.getsource(Scheduler.schedule)
    loop = source[source.index("while token_budget > 0:") :]

    order = [
        "request_queue = self.kv_holding_waiting",
        "if num_running >= self.max_num_active_reqs:",
        "request = request_queue.peek_request()",
        "self._set_kv_fetch_stage(request, KV_FETCH_IN_PROGRESS)",
        "request = request_queue.pop_request()",
        "self._set_kv_fetch_stage(request, None)",
    ]
    places = [loop.index(line) for line in order]
    assert places == sorted(places)
    assert source.count("max_num_active_reqs") == 1


def test_finished_loads_are_taken_up_by_the_next_step() -> None:
    """A load that has landed changes its request's stage, and a failed one starts over if empty."""
    landed = inspect.getsource(Scheduler._update_from_kv_xfer_finished)
    taken_up = inspect.getsource(Scheduler._update_waiting_for_remote_kv)

    assert "self._set_kv_fetch_stage(req, KV_FETCH_COMPLETED_WAITING)" in landed
    assert "request.request_id in self.failed_recving_kv_req_ids" in taken_up
    assert "self.kv_cache_manager.free(request)" in taken_up


def test_requests_carry_what_we_report() -> None:
    """A request has its conversation, its counts, and the flags that decide about swapping."""
    one = request("a")

    assert (one.session_id, one.priority, one.arrival_time) == (None, 0, 0.0)
    assert (one.num_tokens, one.num_prompt_tokens, one.num_output_tokens) == (40, 40, 0)
    assert (one.resumable, one.has_encoder_inputs, one.skip_reading_prefix_cache) == (False,) * 3
    assert (one.num_stale_output_tokens, one.drop_stale_output) == (0, False)
    assert (one.num_preemptions, one.is_prefill_chunk) == (0, False)
    assert (one.lora_request, one.structured_output_request) == (None, None)
    assert (one.cache_salt, one.last_sched_seq) == (None, 0)


def test_finish_reasons_read_as_reported() -> None:
    """Finish reasons turn into the words that our reports promise."""
    assert {str(reason) for reason in FinishReason} == {
        "stop",
        "length",
        "abort",
        "error",
        "repetition",
    }


def test_the_scheduler_records_what_becomes_of_a_request(scheduler: Scheduler) -> None:
    """While it logs statistics: queued, scheduled, preempted, by its monotonic clock."""
    scheduler.log_stats = True
    traced = request("r1")
    scheduler.add_request(traced)
    scheduler.schedule()
    scheduler.running.remove(traced)
    scheduler._preempt_request(traced, 5.0)

    events = traced.take_events() or []
    assert [event.type for event in events] == [
        EngineCoreEventType.QUEUED,
        EngineCoreEventType.SCHEDULED,
        EngineCoreEventType.PREEMPTED,
    ]
    assert events[2].timestamp == 5.0
    assert events[0].timestamp <= events[1].timestamp <= time.monotonic()
    assert traced.take_events() is None


def test_without_statistics_the_scheduler_records_nothing(scheduler: Scheduler) -> None:
    """What is not asked for costs nothing."""
    scheduler.log_stats = False
    untraced = request("r1")
    scheduler.add_request(untraced)
    scheduler.schedule()
    assert untraced.take_events() is None
