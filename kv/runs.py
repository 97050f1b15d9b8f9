"""Runs: blocks that lie side by side, in one pool or in two at once.

Owns the arithmetic of block numbers alone. What lies side by side on both sides of a swap moves
in one contiguous copy per layer, so a swap costs as many copies as it has runs, not blocks.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

_FAR = 1 << 40  # beyond every block number


@dataclass(frozen=True, slots=True)
class Descriptor:
    """One contiguous copy per layer: ``num_blocks`` blocks from each of the two starts on."""

    device_start: int
    host_start: int
    num_blocks: int


def runs_of(blocks: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The longest runs of neighbours, each as (start, end), lowest first.

    A block that is given twice begins a run of its own, which overlaps the one before.
    """
    in_order = sorted(blocks)
    if not in_order:
        return
    start = end = in_order[0]
    for block in in_order:
        if block != end:
            yield start, end
            start = block
        end = block + 1
    yield start, end


def describe(device_blocks: Sequence[int], host_blocks: Sequence[int]) -> list[Descriptor]:
    """The fewest copies that move ``device_blocks[i]`` to or from ``host_blocks[i]``, for all i.

    Their order is free, so no block may be a target twice; a block may be a source twice.
    """
    # Blocks of one copy are equally far from their partners. A pair as one number, first that
    # distance, then the device block: what one copy can move are then neighbouring numbers.
    pairs = (
        (host - device) * _FAR + device
        for device, host in zip(device_blocks, host_blocks, strict=True)
    )
    described = []
    for start, end in runs_of(pairs):
        distance, device_start = divmod(start, _FAR)
        described.append(Descriptor(device_start, device_start + distance, end - start))
    return described


def one_by_one(device_blocks: Sequence[int], host_blocks: Sequence[int]) -> list[Descriptor]:
    """A copy of its own for each block, whatever lies beside it."""
    pairs = zip(device_blocks, host_blocks, strict=True)
    return [Descriptor(device, host, 1) for device, host in pairs]
