"""Swaps against a plain model: whatever happens in whatever order, KV that comes back is right.

The real planner, manager and pools, on memory where each block holds one number per layer. The
model knows what every token prefix's KV is; copies are held back, reordered and fail.
"""

import random
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from kv.block_groups import BlockGroupPool
from kv.copier import CpuCopier
from kv.host_cache import HostCache
from kv.runs import Descriptor
from kv.swap import RequestKV, SwapPlanner
from kv.swap_manager import SwapManager
from kv.swap_plan import Direction

BLOCK_TOKENS = 4
NUM_DEVICE_BLOCKS, NUM_HOST_BLOCKS = 24, 16
LAYERS = ("first", "second")
WRONG = 255
INJECTED = "injected"


class SlowCopier(CpuCopier):
    """Copies late, and when told to fails: halfway, or at the very end."""

    def __init__(
        self,
        device: dict[str, torch.Tensor],
        host: dict[str, torch.Tensor],
        delays_s: random.Random,
    ) -> None:
        super().__init__(device, host)
        self.longest_s = 0.0
        self.is_failing = False
        self._delays = delays_s

    def begin(
        self, direction: Direction, descriptors: Sequence[Descriptor], after: None = None
    ) -> None:
        time.sleep(self._delays.uniform(0, self.longest_s))
        if self.is_failing and self._delays.random() < 0.5:
            super().begin(direction, descriptors[: len(descriptors) // 2], after)
            raise RuntimeError(INJECTED)
        super().begin(direction, descriptors, after)

    def finish(self, ticket: None) -> None:
        if self.is_failing:
            raise RuntimeError(INJECTED)


@dataclass
class Live:
    """A request of the model; its conversation's number stands for its tokens."""

    name: str
    conversation: int
    priority: int
    num_tokens: int
    blocks: list[int] = field(default_factory=list)  # of the device; none while swapped out
    num_loaded: int = 0
    is_loading: bool = False
    is_aborted: bool = False


def content(conversation: int, index: int, num_tokens: int) -> int:
    """What a block's KV is: of its conversation, its place and the tokens in it."""
    return (conversation * 37 + index * 5 + num_tokens) % 251


class SwapMachine(RuleBasedStateMachine):
    """An engine's steps: requests come, grow, leave, come back, end, and blocks are reused."""

    @initialize(
        seed=st.integers(0, 2**32 - 1),
        reuse=st.booleans(),
        has_threads=st.sampled_from([True, True, True, False]),
    )
    def start(self, *, seed: int, reuse: bool, has_threads: bool) -> None:
        self.choose = random.Random(seed)
        self.device = self._memory(NUM_DEVICE_BLOCKS)
        delays = random.Random(seed)
        self.copier = SlowCopier(self.device, self._memory(NUM_HOST_BLOCKS), delays)
        self.copier.longest_s = 0.002
        self.manager = SwapManager(self.copier, has_threads=has_threads)
        self.host_pool = BlockGroupPool("host", NUM_HOST_BLOCKS)
        self.planner = SwapPlanner(HostCache(self.host_pool), BLOCK_TOKENS, reuse=reuse)
        self.device_pool = BlockGroupPool("device", NUM_DEVICE_BLOCKS)
        self.running: dict[str, Live] = {}
        self.swapped: dict[str, Live] = {}
        self.num_named = 0
        self.written: list[int] = []

    def teardown(self) -> None:
        if hasattr(self, "manager"):
            self.copier.is_failing = False
            for name in [*self.swapped, *self.running]:
                self.planner.drop(name)
            self._step()
            self.manager.close()
            assert self.planner.num_host_blocks_used == 0
            self.planner.forget_all()
            assert self.host_pool.num_free == NUM_HOST_BLOCKS

    @rule(conversation=st.integers(0, 3), num_tokens=st.integers(1, 30), priority=st.integers(0, 3))
    def admit(self, conversation: int, num_tokens: int, priority: int) -> None:
        """A new request; what host memory has of its conversation is loaded, the rest computed."""
        if num_tokens > self.device_pool.num_free * BLOCK_TOKENS:
            return
        self.num_named += 1
        one = Live(f"r{self.num_named}", conversation, priority, num_tokens)
        self._place(one, 0)

    @rule(num_tokens=st.integers(1, 9))
    def grow(self, num_tokens: int) -> None:
        one = self._any(self.running)
        if one is None or one.is_loading:
            return
        end = one.num_tokens + num_tokens
        num_more = -(-end // BLOCK_TOKENS) - len(one.blocks)
        if num_more <= self.device_pool.num_free:
            self._take(one, num_more)
            self._compute(one, one.num_tokens, end)
            one.num_tokens = end

    @rule()
    def preempt(self) -> None:
        one = self._any(self.running)
        if one is not None and not one.is_loading:
            self.planner.swap_out(self._kv(one))
            self._leave(one)
            self.swapped[one.name] = one

    @rule()
    def resume(self) -> None:
        one = self._any(self.swapped)
        num_blocks = -(-one.num_tokens // BLOCK_TOKENS) if one else 0
        if one is not None and num_blocks <= self.device_pool.num_free:
            del self.swapped[one.name]
            self._place(one, self.planner.num_kept_tokens(one.name))

    @rule()
    def copy_ahead(self) -> None:
        one = self._any(self.running)
        if one is not None and not one.is_loading:
            self.planner.copy_ahead(self._kv(one), 0, at_most=self.choose.randint(1, 4))

    @rule()
    def finish(self) -> None:
        one = self._any(self.running)
        if one is not None and not one.is_loading:
            self.planner.keep_finished(self._kv(one))
            self._leave(one)

    @rule()
    def abort(self) -> None:
        one = self._any(self.swapped)
        if one is not None:
            self.planner.drop(one.name)
            del self.swapped[one.name]

    @rule()
    def abort_while_loading(self) -> None:
        """Its blocks stay until the load has landed, as in vLLM."""
        one = self._any({name: one for name, one in self.running.items() if one.is_loading})
        if one is not None:
            one.is_aborted = True

    @rule()
    def land(self) -> None:
        """Everything that is on its way arrives."""
        self.manager.drain()
        self._hear()
        assert not any(one.is_loading for one in self.running.values())

    @rule(longest_ms=st.sampled_from([0, 2]))
    def dawdle(self, longest_ms: float) -> None:
        """From now on copies start late, each by another time: the two directions overtake."""
        self.copier.longest_s = longest_ms / 1000

    @rule(is_failing=st.booleans())
    def fail(self, *, is_failing: bool) -> None:
        """From now on, also for copies that are on their way."""
        self.copier.is_failing = is_failing

    @rule()
    def step(self) -> None:
        self._step()

    @invariant()
    def every_block_has_one_owner(self) -> None:
        if not hasattr(self, "running"):
            return
        owned = [block for one in self.running.values() for block in one.blocks]
        assert len(owned) == len(set(owned))
        assert len(owned) + self.device_pool.num_free == NUM_DEVICE_BLOCKS

    # --- the engine's part --------------------------------------------------------------------

    def _place(self, one: Live, num_kept: int) -> None:
        """Give a request blocks and load what is kept of it; the rest is computed behind that."""
        self._take(one, -(-one.num_tokens // BLOCK_TOKENS))
        kv = self._kv(one)
        num_found = self.planner.num_found_blocks(kv.keys, 0) * BLOCK_TOKENS
        one.num_loaded = min(max(num_kept, num_found), one.num_tokens)
        one.is_loading = bool(one.num_loaded) and self.choose.random() < 0.5
        if one.num_loaded:
            self.planner.swap_in(
                kv, first_token=0, end_token=one.num_loaded, is_async=one.is_loading
            )
        else:
            self.planner.drop(one.name)
        self.running[one.name] = one
        is_async = one.is_loading
        self._step()
        if not is_async:
            self._compute_rest(one)

    def _compute_rest(self, one: Live) -> None:
        """The forward pass comes after the step's copies."""
        if one.num_loaded < one.num_tokens:
            self._compute(one, one.num_loaded, one.num_tokens)
        self._check(one)

    def _step(self) -> None:
        plan = self.planner.take_plan(self.written)
        self.written = []
        self.manager.submit(plan)
        self._hear()

    def _hear(self) -> None:
        report = self.manager.take_report()
        if report.failed_host_blocks:
            self.planner.forget(report.failed_host_blocks)
        landed = [one for name, one in self.running.items() if name in report.landed]
        failed = [
            one
            for one in self.running.values()
            if not report.failed_device_blocks.isdisjoint(one.blocks)
        ]
        for one in landed:
            assert one.is_loading
            one.is_loading = False
        for one in failed:
            assert not one.is_loading
            if not one.is_aborted:
                self._compute(one, 0, one.num_tokens)  # as engines do: again from the start
        for one in landed:
            if one.is_aborted:
                self._end(one)
            elif one not in failed:
                self._compute_rest(one)

    def _compute(self, one: Live, begin: int, end: int) -> None:
        """Write the KV of tokens, at once: whatever still reads these blocks must be over."""
        for index in range(begin // BLOCK_TOKENS, -(-end // BLOCK_TOKENS)):
            self.written.append(one.blocks[index])
        self._step()
        for index in range(begin // BLOCK_TOKENS, -(-end // BLOCK_TOKENS)):
            num_tokens = min(end - index * BLOCK_TOKENS, BLOCK_TOKENS)
            for number, rows in enumerate(self.device.values()):
                rows[one.blocks[index]] = content(one.conversation, index, num_tokens) + number

    def _check(self, one: Live) -> None:
        """Every layer of every block of a request holds its KV."""
        assert not one.is_loading
        for index, block in enumerate(one.blocks):
            num_tokens = min(one.num_tokens - index * BLOCK_TOKENS, BLOCK_TOKENS)
            for number, rows in enumerate(self.device.values()):
                expected = content(one.conversation, index, num_tokens) + number
                assert rows[block].unique().tolist() == [expected]

    def _take(self, one: Live, num_blocks: int) -> None:
        after = one.blocks[-1] if one.blocks else None
        one.blocks += self.device_pool.take(num_blocks, after=after)

    def _leave(self, one: Live) -> None:
        self._check(one)
        self._end(one)

    def _end(self, one: Live) -> None:
        del self.running[one.name]
        self.device_pool.give(one.blocks)
        one.blocks = []

    def _kv(self, one: Live) -> RequestKV:
        num_full = one.num_tokens // BLOCK_TOKENS
        keys = [(one.conversation, index) for index in range(num_full)]
        return RequestKV(one.name, keys, one.blocks, one.num_tokens, one.priority)

    def _any(self, requests: dict[str, Live]) -> Live | None:
        return self.choose.choice(list(requests.values())) if requests else None

    @staticmethod
    def _memory(num_blocks: int) -> dict[str, torch.Tensor]:
        return {name: torch.full((num_blocks, 8), WRONG, dtype=torch.uint8) for name in LAYERS}


TestSwaps = SwapMachine.TestCase
TestSwaps.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
