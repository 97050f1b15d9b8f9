"""Swaps as data: whose KV lies in host memory, and which copies the next step has to make.

Owns the bookkeeping of the engine's scheduler side: requests by id, blocks by number, tokens by
count. It moves no byte; ``kv.swap_runner`` carries the plans out. Best effort by design: what is
not kept is computed again by the engine.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

from kv.errors import OutOfBlocksError
from kv.host_pool import HostBlockPool


@dataclass(slots=True)
class BlockCopies:
    """Whole blocks to copy: ``device_blocks[i]`` from or to ``host_blocks[i]``."""

    device_blocks: list[int] = field(default_factory=list)
    host_blocks: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.device_blocks)

    def add(self, device_blocks: Sequence[int], host_blocks: Sequence[int]) -> None:
        assert len(device_blocks) == len(host_blocks)
        self.device_blocks.extend(device_blocks)
        self.host_blocks.extend(host_blocks)


@dataclass(slots=True)
class SwapPlan:
    """The copies of one engine step: all ``outs`` run before the first of ``ins``."""

    outs: BlockCopies = field(default_factory=BlockCopies)
    ins: BlockCopies = field(default_factory=BlockCopies)


@dataclass(slots=True)
class SwapTotals:
    """Swaps since the engine started."""

    swaps_out: int = 0
    swaps_in: int = 0
    blocks_out: int = 0
    blocks_in: int = 0
    stall_s: float = 0.0
    descriptors_out: int = 0
    descriptors_in: int = 0
    blocks_ahead: int = 0
    blocks_spared: int = 0
    async_swaps_in: int = 0
    conflicts: int = 0
    evicted_blocks: int = 0
    lost_copies: int = 0
    failed_blocks: int = 0


@dataclass(frozen=True, slots=True)
class KeptRequest:
    """The copy of one request: its first ``num_tokens`` tokens, the last block maybe partly full.

    ``device_blocks`` is where the bytes came from; the blocks themselves may be others' by now.
    """

    num_tokens: int
    device_blocks: list[int]
    host_blocks: list[int]


class SwapPlanner:
    """What host memory keeps, and the plan of the step that is being scheduled.

    A request has at most one copy. Host blocks that a step still reads, or that it has promised
    to write, become free only when that step's plan is taken: so within one plan no host block
    is written twice, and none is written after it was chosen as a source.
    """

    def __init__(self, pool: HostBlockPool, block_tokens: int) -> None:
        self.totals = SwapTotals()
        self._pool = pool
        self._block_tokens = block_tokens
        self._kept: dict[str, KeptRequest] = {}
        self._plan = SwapPlan()
        self._leaving: list[int] = []

    @property
    def num_host_blocks(self) -> int:
        return self._pool.num_blocks

    @property
    def num_host_blocks_used(self) -> int:
        """Blocks of copies that are still wanted."""
        return self._pool.num_blocks - self._pool.num_free - len(self._leaving)

    def num_kept_tokens(self, request_id: str) -> int:
        kept = self._kept.get(request_id)
        return kept.num_tokens if kept else 0

    def swap_out(self, request_id: str, device_blocks: Sequence[int], num_tokens: int) -> bool:
        """Plan to copy a request's first ``num_tokens`` tokens out; whether there is room."""
        self.drop(request_id)
        source = list(device_blocks[: self._num_blocks(num_tokens)])
        try:
            host_blocks = self._pool.take(len(source))
        except OutOfBlocksError:
            return False
        self._plan.outs.add(source, host_blocks)
        self._kept[request_id] = KeptRequest(num_tokens, source, host_blocks)
        self.totals.swaps_out += 1
        self.totals.blocks_out += len(source)
        return True

    def swap_in(
        self, request_id: str, device_blocks: Sequence[int], *, first_token: int, end_token: int
    ) -> None:
        """Plan to load tokens ``first_token`` to ``end_token - 1`` of a kept request.

        ``device_blocks`` is the request's whole new block table; ``first_token`` starts a block.
        The copy is used up by this.
        """
        kept = self._kept[request_id]
        assert first_token % self._block_tokens == 0
        assert end_token <= kept.num_tokens
        wanted = slice(first_token // self._block_tokens, self._num_blocks(end_token))
        self._plan.ins.add(device_blocks[wanted], kept.host_blocks[wanted])
        self.totals.swaps_in += 1
        self.totals.blocks_in += wanted.stop - wanted.start
        self.drop(request_id)

    def drop(self, request_id: str) -> None:
        """Forget a request's copy, if there is one."""
        kept = self._kept.pop(request_id, None)
        if kept:
            self._leaving.extend(kept.host_blocks)

    def drop_copied_from(self, device_blocks: Collection[int]) -> None:
        """Forget every copy that was made from one of these blocks."""
        dropped = [
            request_id
            for request_id, kept in self._kept.items()
            if not set(kept.device_blocks).isdisjoint(device_blocks)
        ]
        for request_id in dropped:
            self.drop(request_id)

    def drop_all(self) -> None:
        for request_id in list(self._kept):
            self.drop(request_id)

    def take_plan(self) -> SwapPlan:
        """The copies planned since the last call; the next plan starts empty."""
        plan, self._plan = self._plan, SwapPlan()
        self._pool.give(self._leaving)
        self._leaving = []
        return plan

    def _num_blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self._block_tokens)
