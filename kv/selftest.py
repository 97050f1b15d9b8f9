"""Proves at start-up that blocks survive the trip to host memory and back, layer by layer.

The pattern is written and read through the engine's own tensors, the way attention sees its KV,
while the trip moves raw rows: if the engine's layout is not what its description says, digests
differ, and the engine does not start (silently wrong tokens are what such a change has cost
others).
"""

import hashlib
from collections.abc import Iterator, Mapping

import torch

from kv.copier import Copier
from kv.errors import KVLayoutError, RoundTripError
from kv.runs import describe
from kv.swap_plan import Direction

MOST_SENT = 3


def check_round_trip(
    copier: Copier,
    layers: Mapping[str, torch.Tensor],
    *,
    num_blocks: int,
    num_host_blocks: int,
) -> None:
    """Send a few blocks out, wipe them, bring them back; their content is restored at the end.

    ``layers`` are the engine's tensors, blocks in their first dimension. Of host memory no more
    than the first ``MOST_SENT`` blocks are written, and these are not restored.

    Raises:
        KVLayoutError: a layer has no room for the engine's number of blocks.
        RoundTripError: a block came back changed, or one that was not sent did.
    """
    watched = sorted({0, 1, num_blocks // 2, max(num_blocks - 2, 0), num_blocks - 1})
    sent = watched[::2][: min(num_host_blocks, MOST_SENT)]
    # Backwards, so that taking one side's order for the other's shows.
    descriptors = describe(sent, list(reversed(range(len(sent)))))
    originals = {key: rows.clone() for key, rows in _rows(layers, watched, num_blocks=num_blocks)}
    try:
        _write_pattern(layers, watched, num_blocks=num_blocks)
        before = _digests(layers, watched, num_blocks=num_blocks)
        copier.finish(copier.begin(Direction.OUT, descriptors, copier.mark()))
        for _, rows in _rows(layers, sent, num_blocks=num_blocks):
            rows.zero_()
        copier.finish(copier.begin(Direction.IN, descriptors, copier.mark()))
        after = _digests(layers, watched, num_blocks=num_blocks)
    finally:
        for key, rows in _rows(layers, watched, num_blocks=num_blocks):
            rows.copy_(originals[key])
    for (layer, block), digest in before.items():
        if after[layer, block] != digest:
            raise RoundTripError(layer, block)


def _rows(
    layers: Mapping[str, torch.Tensor], blocks: list[int], *, num_blocks: int
) -> Iterator[tuple[tuple[str, int], torch.Tensor]]:
    """Each layer's part of each block, as the engine's own tensor shows it."""
    for name, layer in layers.items():
        # A backend may cut each block into several smaller ones of its own.
        parts, rest = divmod(layer.shape[0], num_blocks)
        if rest or not parts:
            raise KVLayoutError(name, f"shape {tuple(layer.shape)} has no {num_blocks} blocks")
        for block in blocks:
            yield (name, block), layer[block * parts : (block + 1) * parts]


def _write_pattern(
    layers: Mapping[str, torch.Tensor], blocks: list[int], *, num_blocks: int
) -> None:
    random = torch.Generator().manual_seed(0)
    for _, rows in _rows(layers, blocks, num_blocks=num_blocks):
        num_bytes = rows.numel() * rows.element_size()
        pattern = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, generator=random)
        rows.copy_(pattern.to(rows.device).view(rows.dtype).view(rows.shape))


def _digests(
    layers: Mapping[str, torch.Tensor], blocks: list[int], *, num_blocks: int
) -> dict[tuple[str, int], bytes]:
    return {
        key: hashlib.blake2b(rows.cpu().contiguous().flatten().view(torch.uint8).numpy()).digest()
        for key, rows in _rows(layers, blocks, num_blocks=num_blocks)
    }
