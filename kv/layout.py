"""Where the bytes of a block lie: rows of raw memory, one per block, whatever the KV's shape.

Attention backends order layers, blocks, heads, tokens and contents differently, and may keep a
layer's heads apart or pack all layers of a block together. Moving whole blocks needs none of
that, only where each block starts and how long it is.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from kv.errors import KVLayoutError


@dataclass(frozen=True, slots=True)
class Placement:
    """Same-shaped layers in one allocation, all in bytes.

    Block ``b`` of ``layers[i]`` starts at ``offset + i * layer_stride + b * block_stride``.
    """

    layers: tuple[str, ...]
    offset: int
    layer_stride: int
    block_stride: int


def block_rows(
    memory: torch.Tensor, placements: Iterable[Placement], num_blocks: int
) -> dict[str, torch.Tensor]:
    """Views of ``memory`` (bytes) shaped ``(num_blocks, bytes)`` that together hold every block.

    A layer is one such view, or one per head where heads are kept apart; layers that share
    blocks are one view under the first one's name.

    Raises:
        KVLayoutError: the placements do not fit the memory.
    """
    rows: dict[str, torch.Tensor] = {}
    seen: set[int] = set()
    for placement in placements:
        for name, start in _starts(placement, num_blocks):
            end = start + num_blocks * placement.block_stride
            if end > memory.numel():
                problem = f"should end at byte {end} of {memory.numel()}"
                raise KVLayoutError(name, problem)
            if start not in seen:
                seen.add(start)
                rows[name] = memory[start:end].view(num_blocks, placement.block_stride)
    return rows


def _starts(placement: Placement, num_blocks: int) -> list[tuple[str, int]]:
    """Name and first byte of each view that a placement needs."""
    span = num_blocks * placement.block_stride
    if placement.layer_stride < span:
        return [(placement.layers[0], 0)]  # a row is a whole block of all layers
    num_parts, rest = divmod(placement.layer_stride, span)
    if rest:
        problem = f"{placement.layer_stride} bytes are no multiple of its blocks' {span}"
        raise KVLayoutError(placement.layers[0], problem)
    return [
        (
            name if num_parts == 1 else f"{name}.{part}",
            placement.offset + index * placement.layer_stride + part * span,
        )
        for index, name in enumerate(placement.layers)
        for part in range(num_parts)
    ]
