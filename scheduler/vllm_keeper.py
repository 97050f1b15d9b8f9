"""What the scheduler asks of whoever keeps the KV of preempted requests.

The connector of ``kv`` is one; the two know each other by this protocol alone.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Protocol, runtime_checkable

from vllm.v1.request import Request

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
    blocks_found: int
    async_swaps_in: int
    conflicts: int
    evicted_blocks: int
    lost_copies: int
    failed_blocks: int
    load_waits: int
    load_waits_1ms: int
    load_waits_10ms: int
    load_waits_100ms: int
    load_waits_1s: int
    load_wait_s: float
    adopted_blocks: int
    refused_pools: int
    fetched_blocks: int
    missed_blocks: int


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

    def copy_ahead(
        self, likely_victims: Iterable[Request], block_ids_of: Callable[[str], BlockTables]
    ) -> None:
        """Copy what has not been copied of these, first come first, as far as there is time."""
        ...

    def predicted_swap_s(self, num_blocks: int) -> float:
        """What the engine would lose by a swap of so many blocks, out and in; 0 if unknown."""
        ...

    def predicted_load_s(self, num_blocks: int) -> float:
        """What loading so many blocks takes, whoever waits for it; 0 if unknown."""
        ...

    def rank_anew(self, priorities: Mapping[str, int]) -> None:
        """Requests off the device have other priorities, by id: their copies matter as much."""
        ...

    def drop_copied_from(self, block_ids: Collection[int]) -> None:
        """Forget every copy that was made from one of these blocks."""
        ...
