"""Real vLLM engines inside the test's own process, stepped by hand.

vLLM keeps one KV connector per process, so no two engines may live at the same time: the fixture
that makes them has session scope, and pytest groups the tests by its parameter.
"""

import contextlib
import math
import os
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from msgspec import structs
from vllm import EngineArgs, SamplingParams
from vllm.config import KVTransferConfig, VllmConfig
from vllm.distributed.kv_transfer import get_kv_transfer_group
from vllm.lora.request import LoRARequest
from vllm.platforms.cpu import CpuPlatform
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine.llm_engine import LLMEngine

from kv.copier import Copier
from kv.runs import Descriptor
from kv.swap_manager import SwapManager, SwapReport
from kv.swap_plan import Direction, SwapPlan
from kv.swap_timing import SwapTiming
from kv.transfer_config import transfer_config
from scheduler.costs import StepCosts
from scheduler.displacement import Displacement
from scheduler.reports import EngineProgress, SwitchCounts
from scheduler.vllm_scheduler import FastSwitchAsyncScheduler, FastSwitchScheduler

VOCABULARY = 256
MAX_MODEL_LEN = 1024
BLOCK_TOKENS = 32  # the smallest that vLLM's CPU attention has
BLOCK_GIB = 2 * 2 * 2 * 32 * 4 * BLOCK_TOKENS / 2**30  # K and V, layers, heads, head size, float32

Outputs = dict[str, list[list[int]]]  # by request name, one list of tokens per choice
Steer = Callable[[FastSwitchScheduler], Displacement | None]


class SteeredScheduler(FastSwitchScheduler):
    """Makes way for whom ``steer`` says, while it says anything; else as always."""

    steer: Steer | None = None

    def _choose_displaced(self) -> Displacement:
        chosen = self.steer(self) if self.steer else None
        return super()._choose_displaced() if chosen is None else chosen


class SteeredAsyncScheduler(SteeredScheduler, FastSwitchAsyncScheduler):
    """The same, scheduling a step ahead."""


@dataclass(frozen=True, slots=True)
class EngineSettings:
    """An engine's size and kind."""

    num_blocks: int = 256
    host_blocks: int = 256  # with none there is no connector
    max_num_seqs: int = 8
    max_num_batched_tokens: int = 2048
    has_prefix_cache: bool = True
    is_async: bool = False
    is_plain_vllm: bool = False
    loads_beside: bool = False  # never wait for a load, whatever was measured
    num_workers: int = 1
    has_lora: bool = False


@dataclass(frozen=True, slots=True)
class Work:
    """One request to run."""

    name: str
    prompt: list[int]
    max_tokens: int
    priority: int = 0
    salt: str | None = None
    lora: LoRARequest | None = None
    conversation: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def params(self) -> SamplingParams:
        defaults = {"temperature": 0.0, "ignore_eos": True, "detokenize": False}
        return SamplingParams(**{**defaults, "max_tokens": self.max_tokens, **self.options})


class Engine:
    """A vLLM engine and what has come out of it."""

    def __init__(self, model: Path, settings: EngineSettings) -> None:
        self._patches = pytest.MonkeyPatch()
        self._patches.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        # Whatever this machine's rates: what is tested is swapping.
        self._patches.setattr(StepCosts, "recompute_s", lambda *_: math.inf)
        if settings.is_async:
            _schedule_ahead_on_the_cpu(self._patches)
        if settings.loads_beside:
            self._patches.setattr(SwapTiming, "is_worth_going_on", lambda *_: True)
        if settings.num_workers > 1:
            cores = sorted(os.sched_getaffinity(0))[: settings.num_workers]
            self._patches.setenv("VLLM_CPU_OMP_THREADS_BIND", "|".join(map(str, cores)))
        self._llm = LLMEngine.from_engine_args(_engine_args(model, settings))
        self.outputs: Outputs = {}
        self.cached_tokens: dict[str, int] = {}
        self.finished: set[str] = set()
        self._switches_before = SwitchCounts()
        self._ids: dict[str, str] = {}

    @property
    def core(self) -> Any:
        return self._llm.engine_core.engine_core

    @property
    def scheduler(self) -> SteeredScheduler:
        return self.core.scheduler

    def steer(self, steer: Steer | None) -> None:
        self.scheduler.steer = steer

    def add(self, work: Work) -> str:
        """Hand a request to the engine; its id in there."""
        prompt: dict[str, Any] = {"prompt_token_ids": work.prompt}
        if work.salt is not None:
            prompt["cache_salt"] = work.salt
        self._ids[work.name] = self._llm.add_request(
            work.name,
            prompt,
            work.params(),
            lora_request=work.lora,
            priority=work.priority,
            session_id=work.conversation,
        )
        self.outputs[work.name] = [[] for _ in range(work.options.get("n", 1))]
        return self._ids[work.name]

    def state(self, name: str) -> str:
        """The engine's word for what a live request is doing: WAITING, RUNNING, PREEMPTED, ..."""
        return self.scheduler.requests[self._ids[name]].status.name

    def abort(self, name: str) -> None:
        self._llm.abort_request([name])
        self.finished.add(name)

    def step(self) -> None:
        for output in self._llm.step():
            for one in output.outputs:
                self.outputs[output.request_id][one.index] = list(one.token_ids)
            self.cached_tokens[output.request_id] = output.num_cached_tokens or 0
            if output.finished:
                self.finished.add(output.request_id)

    def drain(self, *, max_steps: int = 20_000) -> None:
        """Step until nothing is left to do, not even to tell the workers who has finished."""
        for _ in range(max_steps):
            if not self.scheduler.has_requests() and not getattr(self.core, "batch_queue", None):
                return
            self.step()
        message = f"still busy after {max_steps} steps: {self.progress()}"
        raise AssertionError(message)

    def run(self, works: Iterable[Work]) -> Outputs:
        """Run requests to their end; what came out."""
        names = []
        for work in works:
            self.add(work)
            names.append(work.name)
        self.drain()
        assert self.finished.issuperset(names)
        return {name: self.outputs[name] for name in names}

    def forget(self, names: Iterable[str]) -> None:
        """Keep nothing of these requests, which have ended."""
        for name in names:
            del self.outputs[name], self._ids[name]
            self.finished.remove(name)
            self.cached_tokens.pop(name, None)

    def progress(self, *, is_full: bool = False) -> EngineProgress:
        return self.scheduler.take_progress(is_full)

    def switches(self) -> SwitchCounts:
        """Counts since ``clear``."""
        now = structs.asdict(self.progress().switches)
        before = structs.asdict(self._switches_before)
        return SwitchCounts(**{name: count - before[name] for name, count in now.items()})

    @contextlib.contextmanager
    def failing_copies(self, choose: random.Random, *, share: float) -> "Iterator[FailingCopier]":
        """While this lasts, a share of the worker's copies fail, out and in."""
        manager = get_kv_transfer_group()._manager
        copier = FailingCopier(manager._copier, choose, share)
        manager._copier = copier
        yield copier
        manager.drain()
        manager._copier = copier.copier

    @contextlib.contextmanager
    def witnessed_copies(self) -> "Iterator[KVWitness]":
        """While this lasts, every block that comes back is compared with what left."""
        manager = get_kv_transfer_group()._manager
        witness = KVWitness(manager)
        with pytest.MonkeyPatch.context() as patches:
            patches.setattr(manager, "submit", witness.submit)
            patches.setattr(manager, "take_report", witness.take_report)
            yield witness

    def forget_cached_blocks(self) -> None:
        """Empty the device's prefix cache, also of blocks that are in use."""
        manager = self.scheduler.kv_cache_manager
        manager.evict_blocks(set(range(manager.block_pool.num_gpu_blocks)))

    def clear(self) -> None:
        """Between tests: nothing running, nothing cached, nothing steered."""
        self.steer(None)
        self._llm.abort_request([name for name in self._ids if name not in self.finished])
        self.drain()
        self._llm.reset_prefix_cache(reset_connector=True)
        self._ids.clear()
        self._switches_before = self.progress().switches

    def shut_down(self) -> None:
        self._llm.engine_core.shutdown()
        self._patches.undo()


class FailingCopier:
    """A copier that loses some of its copies, as a failing driver would."""

    is_stream_ordered = False

    def __init__(self, copier: Copier, choose: random.Random, share: float) -> None:
        self.copier = copier
        self.count = 0
        self._choose, self._share = choose, share

    def pieces(
        self, device_blocks: Sequence[int], host_blocks: Sequence[int]
    ) -> Sequence[Descriptor]:
        return self.copier.pieces(device_blocks, host_blocks)

    def mark(self) -> Any:
        return self.copier.mark()

    def begin(self, direction: Direction, descriptors: Sequence[Descriptor], after: Any) -> Any:
        if self._choose.random() < self._share:
            self.count += 1
            message = "injected"
            raise RuntimeError(message)
        return self.copier.begin(direction, descriptors, after)

    def finish(self, ticket: Any) -> None:
        self.copier.finish(ticket)

    def order_device_behind(self, ticket: Any) -> None:
        self.copier.order_device_behind(ticket)


class KVWitness:
    """Looks at the bytes of every layer: what is loaded must be what was saved under that place.

    A plan's outcome is that of its copies one after another, so what leaves is known when the
    plan is submitted, however late it is copied.
    """

    def __init__(self, manager: SwapManager) -> None:
        self.num_blocks_compared = 0
        self._submit, self._take_report = manager.submit, manager.take_report
        copier: Any = manager._copier
        self._layers = [device for device, _ in copier._layers]
        self._saved: dict[int, list[bytes]] = {}  # by host block, one entry per layer
        self._awaited: dict[str, dict[int, list[bytes]]] = {}  # by request, then device block

    def submit(self, plan: SwapPlan) -> None:
        arriving: dict[int, list[bytes]] = {}
        for copies in plan.copies:
            pairs = zip(copies.device_blocks, copies.host_blocks, strict=True)
            if copies.direction is Direction.OUT:
                for on_device, on_host in pairs:
                    self._saved[on_host] = arriving.get(on_device) or self._bytes(on_device)
                continue
            # Whatever was saved before the witness came is not known.
            known = {device: self._saved[host] for device, host in pairs if host in self._saved}
            arriving |= known
            if copies.request_id is not None:
                self._awaited[copies.request_id] = known
        awaited = {block for blocks in self._awaited.values() for block in blocks}
        self._submit(plan)
        self._compare({block: arriving[block] for block in arriving.keys() - awaited})

    def take_report(self) -> SwapReport:
        report = self._take_report()
        for request_id in report.landed:
            self._compare(self._awaited.pop(request_id, {}))
        return report

    def _compare(self, expected: dict[int, list[bytes]]) -> None:
        for block, saved in expected.items():
            assert self._bytes(block) == saved, f"block {block} came back changed"
        self.num_blocks_compared += len(expected)

    def _bytes(self, device_block: int) -> list[bytes]:
        return [layer[device_block].tobytes() for layer in self._layers]


def prompt(choose: random.Random, num_tokens: int) -> list[int]:
    return [choose.randrange(VOCABULARY) for _ in range(num_tokens)]


def preempt_at_random(choose: random.Random, *, every: int = 2) -> Steer:
    """A random running request is preempted at every second step, or so."""

    def steer(scheduler: FastSwitchScheduler) -> Displacement | None:
        if scheduler.current_step % every or not scheduler.running:
            return None
        return Displacement(victims=(choose.choice(scheduler.running).request_id,))

    return steer


def _engine_args(model: Path, settings: EngineSettings) -> EngineArgs:
    transfer = None
    if settings.host_blocks and not settings.is_plain_vllm:
        transfer = KVTransferConfig(**transfer_config(settings.host_blocks * BLOCK_GIB))
    scheduler: type[Scheduler] = SteeredAsyncScheduler if settings.is_async else SteeredScheduler
    return EngineArgs(
        model=str(model),
        dtype="float32",
        enforce_eager=True,
        max_model_len=MAX_MODEL_LEN,
        block_size=BLOCK_TOKENS,
        num_gpu_blocks_override=settings.num_blocks,
        max_num_seqs=settings.max_num_seqs,
        max_num_batched_tokens=settings.max_num_batched_tokens,
        enable_prefix_caching=settings.has_prefix_cache,
        scheduling_policy="priority",
        scheduler_cls=None if settings.is_plain_vllm else scheduler,
        kv_transfer_config=transfer,
        disable_log_stats=True,
        tensor_parallel_size=settings.num_workers,
        # Of the machine's memory, which has other uses too; the KV is counted in blocks.
        gpu_memory_utilization=0.3,
        enable_lora=settings.has_lora,
        max_loras=1,
        max_lora_rank=8,
    )


def _schedule_ahead_on_the_cpu(patches: pytest.MonkeyPatch) -> None:
    """Have vLLM schedule as it does for GPUs: its CPU platform would switch that off.

    What this needs of CUDA is streams and events, and on the CPU everything is in order anyway.
    """
    check = CpuPlatform.check_and_update_config.__func__

    def check_but_stay_async(platform: type[CpuPlatform], config: VllmConfig) -> None:
        check(platform, config)
        config.scheduler_config.async_scheduling = True

    patches.setattr(CpuPlatform, "check_and_update_config", classmethod(check_but_stay_async))
    patches.setattr(torch, "Event", _Event)
    patches.setattr(torch.cuda, "Event", _Event)
    patches.setattr(torch.cuda, "Stream", _Stream)
    patches.setattr(torch.cuda, "current_stream", _Stream)
    patches.setattr(torch.cuda, "stream", lambda _stream: contextlib.nullcontext())


class _Event:
    def __init__(self, *_args: Any, **_kwargs: Any) -> None: ...

    def record(self, *_args: Any) -> None: ...

    def synchronize(self) -> None: ...


class _Stream:
    device = torch.device("cpu")

    def __init__(self, *_args: Any, **_kwargs: Any) -> None: ...

    def wait_stream(self, *_args: Any) -> None: ...
