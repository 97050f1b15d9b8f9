"""The connector by itself: its size, what it refuses, and how it passes plans and reports on."""

import logging
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from vllm.config import KVTransferConfig
from vllm.distributed.kv_transfer.kv_connector.v1.base import KVConnectorRole
from vllm.v1.kv_cache_interface import (
    FullAttentionSpec,
    KVCacheConfig,
    KVCacheGroupSpec,
    KVCacheTensor,
    SlidingWindowSpec,
)
from vllm.v1.outputs import KVConnectorOutput

from kv import shared_host
from kv.errors import ConnectorSettingError, HostMemorySizeError, KVLayoutError, RoundTripError
from kv.swap_manager import SwapReport
from kv.swap_plan import BlockCopies, Direction, SwapPlan, Urgency
from kv.transfer_config import PARTS, transfer_config
from kv.vllm_connector import FastSwitchConnector, SwapMetadata, SwapWorkerMetadata

GIB = 2**30
NUM_BLOCKS, BLOCK_TOKENS, LAYERS = 8, 32, ["first", "second"]
PAGE = 2 * 2 * 32 * BLOCK_TOKENS * 4  # K and V, heads, head size, float32
BLOCK_GIB = len(LAYERS) * PAGE / GIB

StartWorker = Callable[..., FastSwitchConnector]


def engine_config(extra: dict[str, Any], **changes: Any) -> Any:
    """As much of an engine's configuration as the connector looks at."""
    transfer = KVTransferConfig(**(transfer_config(1.0) | {"kv_connector_extra_config": extra}))
    parallel = {
        "pipeline_parallel_size": 1,
        "decode_context_parallel_size": 1,
        "tensor_parallel_size": 1,
        "world_size": 1,
        "rank": 0,
    }
    return SimpleNamespace(
        kv_transfer_config=transfer,
        cache_config=SimpleNamespace(
            block_size=BLOCK_TOKENS,
            enable_prefix_caching=changes.pop("enable_prefix_caching", True),
            prefix_caching_hash_algo="sha256",
            cache_dtype="auto",
        ),
        model_config=SimpleNamespace(
            model="owner/name",
            revision=None,
            hf_config=None,
            dtype="float32",
            enable_sleep_mode=changes.pop("enable_sleep_mode", False),
        ),
        lora_config=None,
        compute_hash=lambda: "all the rest",
        parallel_config=SimpleNamespace(**(parallel | changes.pop("parallel", {}))),
        speculative_config=changes.pop("speculative_config", None),
    )


def kv_cache_config(*, is_windowed: bool = False, num_groups: int = 1) -> KVCacheConfig:
    shape = {"block_size": BLOCK_TOKENS, "num_kv_heads": 2, "head_size": 32, "dtype": torch.float32}
    spec = (
        SlidingWindowSpec(**shape, sliding_window=64) if is_windowed else FullAttentionSpec(**shape)
    )
    span = NUM_BLOCKS * PAGE
    tensor = KVCacheTensor(
        size=len(LAYERS) * span, layers=LAYERS, layer_stride=span, block_stride=PAGE
    )
    return KVCacheConfig(NUM_BLOCKS, [tensor], [KVCacheGroupSpec(LAYERS, spec)] * num_groups)


def kv_tensors() -> dict[str, torch.Tensor]:
    memory = torch.zeros((len(LAYERS), NUM_BLOCKS, 2, BLOCK_TOKENS, 64))
    return {name: memory[index] for index, name in enumerate(LAYERS)}


def make(
    role: KVConnectorRole = KVConnectorRole.WORKER,
    *,
    host_blocks: int = 4,
    without: Collection[str] = (),
    **changes: Any,
) -> FastSwitchConnector:
    kv_cache = changes.pop("kv_cache", kv_cache_config())
    extra = {"host_kv_gib": host_blocks * BLOCK_GIB, "without": [*without]}
    extra |= changes.pop("extra", {})
    return FastSwitchConnector(engine_config(extra, **changes), role, kv_cache)


def request(name: str, *, num_computed: int) -> Any:
    return SimpleNamespace(
        request_id=name,
        block_hashes=[f"hash {index}" for index in range(num_computed // BLOCK_TOKENS)],
        num_computed_tokens=num_computed,
        num_tokens=num_computed + 1,
        priority=0,
    )


def empty_step() -> Any:
    cached = SimpleNamespace(
        req_ids=[], new_block_ids=[], num_computed_tokens=[], resumed_req_ids=set()
    )
    return SimpleNamespace(
        num_scheduled_tokens={}, scheduled_new_reqs=[], scheduled_cached_reqs=cached
    )


def out(device: list[int], host: list[int]) -> BlockCopies:
    return BlockCopies(Direction.OUT, Urgency.NOBODY_YET, device, host)


def load(device: list[int], host: list[int], *, beside: str | None = None) -> BlockCopies:
    """Before the step, or beside it for a request that is told."""
    return BlockCopies(
        Direction.IN, Urgency.REQUEST if beside else Urgency.STEP, device, host, beside
    )


@pytest.fixture
def start_worker() -> Iterator[StartWorker]:
    """Makes a worker that has its memory, and ends its threads at last."""
    workers: list[FastSwitchConnector] = []

    def start(layers: dict[str, torch.Tensor], **changes: Any) -> FastSwitchConnector:
        workers.append(make(**changes))
        workers[-1].register_kv_caches(layers)
        return workers[-1]

    yield start
    for worker in workers:
        worker.shutdown()


def test_settings_that_are_not_understood_are_refused() -> None:
    """A connector with a setting it does not know is not made."""
    config = engine_config({"host_kv_gib": 1, "host_gib": 1})
    with pytest.raises(ConnectorSettingError, match="'host_gib': unknown"):
        FastSwitchConnector(config, KVConnectorRole.WORKER, kv_cache_config())


def test_the_memory_is_shared_out_among_the_workers() -> None:
    """With two workers, each keeps its part of every block: there are half as many."""
    role = KVConnectorRole.SCHEDULER

    assert make(role, host_blocks=6).num_host_blocks == 6
    assert make(role, host_blocks=6, parallel={"world_size": 2}).num_host_blocks == 3


def test_less_than_a_block_is_refused() -> None:
    """Host memory that holds no block is an error that says how much one takes."""
    config = engine_config({"host_kv_gib": BLOCK_GIB / 2})
    with pytest.raises(HostMemorySizeError, match=r"one block of this model takes 3\.05e-05 GiB"):
        FastSwitchConnector(config, KVConnectorRole.SCHEDULER, kv_cache_config())


def test_more_than_the_machine_has_is_refused_before_it_is_taken() -> None:
    """The worker does not start to allocate what cannot be had."""
    worker = make(host_blocks=10**9)

    with pytest.raises(HostMemorySizeError, match=r"at most .* fit"):
        worker.register_kv_caches(kv_tensors())


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"parallel": {"pipeline_parallel_size": 2}}, "pipeline parallelism"),
        ({"parallel": {"decode_context_parallel_size": 2}}, "context parallelism"),
        ({"speculative_config": object()}, "speculative decoding"),
        ({"enable_sleep_mode": True}, "sleeps"),
        ({"kv_cache": kv_cache_config(num_groups=2)}, "mixes kinds of attention"),
        ({"kv_cache": kv_cache_config(is_windowed=True)}, "does not keep all of its past"),
    ],
    ids=["pipeline", "context", "speculative", "sleep", "hybrid", "sliding window"],
)
def test_kv_that_cannot_be_moved_is_left_to_vllm(
    changes: dict[str, Any], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Such engines run as without a connector, and say why at start-up."""
    # Libraries that configure logging anew switch off whatever loggers there are.
    logging.getLogger("kv.vllm_connector").disabled = False
    caplog.set_level(logging.WARNING, logger="kv.vllm_connector")
    connector = make(KVConnectorRole.SCHEDULER, **changes)

    one = request("a", num_computed=64)
    assert not connector.swap_out(one, ([1, 2],))
    connector.copy_ahead([one], lambda _: ([1, 2],))
    assert connector.get_num_new_matched_tokens(one, 0) == (0, False)
    assert connector.build_connector_meta(empty_step()) == SwapMetadata(SwapPlan())
    assert (connector.num_host_blocks, connector.swap_totals.swaps_out) == (0, 0)
    assert reason in caplog.text


def test_a_worker_without_host_memory_copies_nothing() -> None:
    """Where nothing is kept, a worker takes the empty plans and has nothing to report."""
    worker = make(kv_cache=kv_cache_config(is_windowed=True))
    worker.register_kv_caches(kv_tensors())

    worker.handle_preemptions(SwapMetadata(SwapPlan()))

    assert worker.get_finished(set()) == (None, set())
    assert worker.get_block_ids_with_load_errors() == set()
    assert worker.build_connector_worker_meta() is None
    worker.shutdown()


@pytest.mark.parametrize("without", [[], ["threads"], sorted(PARTS)], ids=str)
def test_blocks_go_out_and_come_back_in_every_layer(
    start_worker: StartWorker, without: list[str]
) -> None:
    """Plans move exactly the blocks that they name, whatever parts are switched off."""
    layers = kv_tensors()
    worker = start_worker(layers, without=without)
    for number, layer in enumerate(layers.values()):
        layer[3] = 3.5 + number

    # The step writes block 3, so its old content has left before.
    worker.handle_preemptions(SwapMetadata(SwapPlan([out([3], [1])], written_blocks=[3])))
    for layer in layers.values():
        layer.zero_()
    worker.handle_preemptions(SwapMetadata(SwapPlan([load([6], [1])])))

    for number, layer in enumerate(layers.values()):
        assert (layer[6] == 3.5 + number).all()
        assert not layer[3].any()


def test_a_report_answers_each_question_once(start_worker: StartWorker) -> None:
    """What landed, what failed and what was measured are of the same moment, and told once."""
    worker = start_worker(kv_tensors())
    beside = SwapPlan([out([3], [1]), load([6], [1], beside="a")])
    worker.handle_preemptions(SwapMetadata(beside))
    worker.handle_preemptions(SwapMetadata(SwapPlan(written_blocks=[6])))  # waits for the load

    assert worker.get_finished(set()) == (None, {"a"})
    assert worker.get_block_ids_with_load_errors() == set()
    metadata = worker.build_connector_worker_meta()
    assert metadata is not None
    assert metadata.report.blocks == {Direction.OUT: 1, Direction.IN: 1, Direction.ACROSS: 0}
    assert metadata.report.busy_s[Direction.OUT] > 0

    assert worker.get_finished(set()) == (None, set())
    assert worker.build_connector_worker_meta() is None


def test_a_failed_load_is_told_in_the_step_in_which_it_ends(start_worker: StartWorker) -> None:
    """The engine hears of the blocks together with the request, and computes them again."""
    worker = start_worker(kv_tensors())
    no_such_block = 99
    failing = SwapPlan([load([5, 6], [0, no_such_block], beside="a")])
    worker.handle_preemptions(SwapMetadata(failing))
    worker.handle_preemptions(SwapMetadata(SwapPlan(written_blocks=[6])))

    assert worker.get_finished(set()) == (None, {"a"})
    assert worker.get_block_ids_with_load_errors() == {5, 6}


def test_a_swap_is_planned_beside_the_scheduler() -> None:
    """What leaves is kept, travels in the step's metadata, and is offered when it is asked for."""
    scheduler = make(KVConnectorRole.SCHEDULER)
    one = request("a", num_computed=64)

    assert scheduler.swap_out(one, ([4, 5],))
    [copies] = scheduler.build_connector_meta(empty_step()).plan.copies
    one.num_computed_tokens = 0
    assert scheduler.get_num_new_matched_tokens(one, 0) == (64, False)
    blocks = SimpleNamespace(get_block_ids=lambda: ([6, 7, 8],))
    scheduler.update_state_after_alloc(one, blocks, 64)
    [back] = scheduler.build_connector_meta(empty_step()).plan.copies

    assert (copies.direction, copies.device_blocks) == (Direction.OUT, [4, 5])
    assert (back.direction, back.device_blocks) == (Direction.IN, [6, 7])
    assert (scheduler.swap_totals.swaps_out, scheduler.swap_totals.swaps_in) == (1, 1)


def test_what_workers_report_reaches_the_planning() -> None:
    """A report's counts are in the totals, and copies that failed are offered no more."""
    scheduler = make(KVConnectorRole.SCHEDULER)
    one = request("a", num_computed=64)
    scheduler.swap_out(one, ([4, 5],))
    [copies] = scheduler.build_connector_meta(empty_step()).plan.copies
    report = SwapReport(stall_s=0.5, failed_host_blocks={copies.host_blocks[0]})

    scheduler.update_connector_output(
        KVConnectorOutput(kv_connector_worker_meta=SwapWorkerMetadata(report))
    )
    scheduler.update_connector_output(KVConnectorOutput())

    one.num_computed_tokens = 0
    assert scheduler.get_num_new_matched_tokens(one, 0) == (0, False)
    assert (scheduler.swap_totals.stall_s, scheduler.swap_totals.failed_blocks) == (0.5, 1)


def test_a_finished_requests_blocks_are_free_at_once() -> None:
    """vLLM need not wait for the copies that are made for the next turn."""
    scheduler = make(KVConnectorRole.SCHEDULER)

    answer = scheduler.request_finished_all_groups(request("a", num_computed=64), ([4, 5],))

    assert answer == (False, None)
    [copies] = scheduler.build_connector_meta(empty_step()).plan.copies
    assert (copies.urgency, copies.device_blocks) == (Urgency.NOBODY, [4, 5])


def test_a_reset_forgets_what_was_kept() -> None:
    """After vLLM's prefix cache is reset, as for new weights, old KV is offered to nobody."""
    scheduler = make(KVConnectorRole.SCHEDULER)
    scheduler.request_finished_all_groups(request("a", num_computed=64), ([4, 5],))

    assert scheduler.reset_cache()

    assert scheduler.get_num_new_matched_tokens(request("b", num_computed=64), 0) == (0, False)


def test_copies_that_workers_share_are_told_by_the_first() -> None:
    """Each makes them, in whichever step; told by both they would count twice."""
    report = SwapReport(landed={"a"}, failed_host_blocks={3}, load_waits_s=[0.5])
    report.blocks[Direction.IN] = report.descriptors[Direction.IN] = 4
    report.busy_s[Direction.IN] = 0.25
    told = []
    for rank in (0, 1):
        worker = make(KVConnectorRole.WORKER)
        worker._vllm_config.parallel_config.rank = rank
        worker._report = report
        told.append(worker.build_connector_worker_meta())

    assert told == [
        SwapWorkerMetadata(report),
        SwapWorkerMetadata(SwapReport(landed={"a"}, failed_host_blocks={3})),
    ]


def test_workers_that_share_a_step_report_as_one() -> None:
    """Of two workers' reports the slower one's times count, and every failure."""
    one = SwapWorkerMetadata(SwapReport(stall_s=0.5, failed_host_blocks={1}))
    other = SwapWorkerMetadata(SwapReport(stall_s=0.25, failed_host_blocks={2}))

    assert one.aggregate(other) == SwapWorkerMetadata(
        SwapReport(stall_s=0.5, failed_host_blocks={1, 2})
    )


def in_pool(folder: Path, life: int) -> dict[str, Any]:
    return {"pool": {"folder": str(folder), "life": life}}


def hashed_request(name: str, *, num_computed: int) -> Any:
    """A request whose blocks' hashes are as long as vLLM's."""
    one = request(name, num_computed=num_computed)
    one.block_hashes = [bytes([number]) * 32 for number in range(len(one.block_hashes))]
    return one


def run_and_finish(worker: FastSwitchConnector, scheduler: FastSwitchConnector) -> None:
    """A request that has computed two blocks ends; its KV has landed in host memory."""
    scheduler.request_finished_all_groups(hashed_request("a", num_computed=64), ([4, 5],))
    worker.handle_preemptions(scheduler.build_connector_meta(empty_step()))
    worker.shutdown()
    scheduler.shutdown()


def test_a_successor_offers_and_loads_what_its_predecessor_had(
    start_worker: StartWorker, tmp_path: Path
) -> None:
    """The same request, to an engine that has computed nothing yet."""
    layers = kv_tensors()
    for layer in layers.values():
        layer[4], layer[5] = 4.5, 5.5
    first: dict[str, Any] = {"extra": in_pool(tmp_path, 1)}
    run_and_finish(start_worker(layers, **first), make(KVConnectorRole.SCHEDULER, **first))

    empty = kv_tensors()
    second: dict[str, Any] = {"extra": in_pool(tmp_path, 2)}
    worker = start_worker(empty, **second)
    scheduler = make(KVConnectorRole.SCHEDULER, **second)
    again = hashed_request("b", num_computed=64)
    assert scheduler.get_num_new_matched_tokens(again, 0) == (64, False)
    blocks = SimpleNamespace(get_block_ids=lambda: ([6, 7, 3],))
    scheduler.update_state_after_alloc(again, blocks, 64)
    worker.handle_preemptions(scheduler.build_connector_meta(empty_step()))

    for layer in empty.values():
        assert (layer[6] == 4.5).all()
        assert (layer[7] == 5.5).all()
    totals = scheduler.swap_totals
    assert (totals.adopted_blocks, totals.blocks_found, totals.refused_pools) == (2, 2, 0)
    scheduler.shutdown()


class BesideEachOther:
    """An engine with a pool of its own, beside others of its kind; its copies land at once."""

    def __init__(self, start_worker: StartWorker, folder: Path, life: int) -> None:
        pool = folder / f"kind-{life}"
        pool.mkdir()
        extra = in_pool(pool, life) | {"without": ["threads"]}
        self.layers = kv_tensors()
        self.worker = start_worker(self.layers, extra=extra)
        self.scheduler = make(KVConnectorRole.SCHEDULER, extra=extra)

    def finish(self, name: str) -> None:
        """A request with two blocks ends, whose KV says so."""
        for layer in self.layers.values():
            layer[4], layer[5] = 4.5, 5.5
        one = hashed_request(name, num_computed=64)
        self.scheduler.request_finished_all_groups(one, ([4, 5],))
        self.step()

    def step(self) -> None:
        self.worker.handle_preemptions(self.scheduler.build_connector_meta(empty_step()))
        self.worker.get_finished(set())
        metadata = self.worker.build_connector_worker_meta()
        self.scheduler.update_connector_output(KVConnectorOutput(kv_connector_worker_meta=metadata))

    def offered(self, one: Any) -> tuple[int | None, bool]:
        return self.scheduler.get_num_new_matched_tokens(one, 0)

    def counts(self) -> tuple[int, int]:
        totals = self.scheduler.swap_totals
        return totals.fetched_blocks, totals.missed_blocks


def test_a_request_is_loaded_from_a_neighbour(start_worker: StartWorker, tmp_path: Path) -> None:
    """It waits for the fetch, without blocks, and is offered then what has come."""
    first = BesideEachOther(start_worker, tmp_path, 1)
    first.finish("a")
    second = BesideEachOther(start_worker, tmp_path, 2)
    again = hashed_request("b", num_computed=64)

    assert second.offered(again) == (None, False)
    assert second.offered(again) == (None, False)
    second.step()
    assert second.offered(again) == (64, False)
    blocks = SimpleNamespace(get_block_ids=lambda: ([6, 7, 3],))
    second.scheduler.update_state_after_alloc(again, blocks, 64)
    second.step()

    for layer in second.layers.values():
        assert (layer[6] == 4.5).all()
        assert (layer[7] == 5.5).all()
    assert second.counts() == (2, 0)
    assert first.counts() == (0, 0)


def test_what_a_neighbour_has_written_over_is_computed(
    start_worker: StartWorker, tmp_path: Path
) -> None:
    """The request is asked to wait once, not again and again, and nothing has failed."""
    first = BesideEachOther(start_worker, tmp_path, 1)
    first.finish("a")
    second = BesideEachOther(start_worker, tmp_path, 2)
    again = hashed_request("b", num_computed=64)
    assert second.offered(again) == (None, False)

    first.scheduler.reset_cache()
    second.step()

    assert second.offered(again) == (0, False)
    assert second.counts() == (0, 2)
    assert second.scheduler.swap_totals.failed_blocks == 0


def test_after_a_reset_an_engine_keeps_to_itself(start_worker: StartWorker, tmp_path: Path) -> None:
    """Its weights may be others now: it takes nothing from neighbours, nor they from it."""
    first = BesideEachOther(start_worker, tmp_path, 1)
    first.scheduler.reset_cache()
    first.finish("a")
    assert first.offered(hashed_request("b", num_computed=64)) == (64, False)

    second = BesideEachOther(start_worker, tmp_path, 2)
    assert second.offered(hashed_request("b", num_computed=64)) == (0, False)
    second.finish("b")
    third = BesideEachOther(start_worker, tmp_path, 3)
    third.scheduler.reset_cache()
    assert third.offered(hashed_request("b", num_computed=64)) == (0, False)


@pytest.mark.parametrize(
    ("changes", "num_refused"),
    [({"host_blocks": 5}, 1), ({"enable_prefix_caching": False}, 0), ({"without": ["reuse"]}, 0)],
    ids=["another size", "no prefix cache", "no reuse"],
)
def test_what_is_of_no_use_is_not_taken_over(
    start_worker: StartWorker, tmp_path: Path, changes: dict[str, Any], num_refused: int
) -> None:
    """Nothing is offered of it, and only where it might have been of use is that counted."""
    first: dict[str, Any] = {"extra": in_pool(tmp_path, 1)}
    run_and_finish(start_worker(kv_tensors(), **first), make(KVConnectorRole.SCHEDULER, **first))

    second = {"extra": in_pool(tmp_path, 2), **changes}
    start_worker(kv_tensors(), **second)
    scheduler = make(KVConnectorRole.SCHEDULER, **second)

    again = hashed_request("b", num_computed=64)
    assert scheduler.get_num_new_matched_tokens(again, 0) == (0, False)
    assert scheduler.swap_totals.refused_pools == num_refused
    scheduler.shutdown()


def test_without_room_in_shared_memory_an_engine_has_host_memory_of_its_own(
    start_worker: StartWorker,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It says so, counts it, and swaps as always."""
    logging.getLogger("kv.vllm_copying").disabled = False
    caplog.set_level(logging.WARNING, logger="kv.vllm_copying")
    monkeypatch.setattr(shared_host, "room", lambda _: 5000)
    place: dict[str, Any] = {"extra": in_pool(tmp_path, 1)}

    worker = start_worker(kv_tensors(), **place)
    scheduler = make(KVConnectorRole.SCHEDULER, **place)
    run_and_finish(worker, scheduler)

    assert scheduler.swap_totals.blocks_ahead == 2
    assert scheduler.swap_totals.refused_pools == 1
    [said] = [each.message for each in caplog.records if each.name.startswith("kv.")]
    assert said.startswith("KV in host memory will end with this engine: ")
    assert "host_kv_gib could be at most" in said


def test_a_layout_that_is_not_as_described_stops_the_start() -> None:
    """If layers lie elsewhere than the engine says, the engine does not start."""
    layers = kv_tensors()
    apart = {"first": layers["first"], "second": layers["second"].clone()}

    with pytest.raises(RoundTripError, match="KV cache of second"):
        make().register_kv_caches(apart)

    with pytest.raises(KVLayoutError):
        make().register_kv_caches({"first": torch.zeros((NUM_BLOCKS, PAGE // 4))})
