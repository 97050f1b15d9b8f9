"""Copies runs of blocks between a GPU and pinned host memory, on a stream per direction.

Leans on vLLM's batched copy, which hands the driver all of a swap's pieces in one call where the
driver can (CUDA 12.8); pinned by ``tests/kv/test_vllm_contract.py``.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from vllm import _custom_ops as ops

from kv.runs import Descriptor, describe, one_by_one
from kv.swap_plan import DEVICE_WAYS, Direction


class CudaCopier:
    """A copy waits on its own stream for what the GPU had to compute before it, the host for none.

    ``device`` are rows on the GPU, ``host`` rows of pinned memory.
    """

    is_stream_ordered = True

    def __init__(
        self, device: Mapping[str, torch.Tensor], host: Mapping[str, torch.Tensor]
    ) -> None:
        self._tensors = [(device[name], host[name]) for name in device]  # keeps them alive
        self._device = self._tensors[0][0].device
        self._device_starts = _column([rows.data_ptr() for rows, _ in self._tensors])
        self._host_starts = _column([rows.data_ptr() for _, rows in self._tensors])
        self._block_bytes = _column([rows.shape[1] for rows, _ in self._tensors])
        self._streams = {way: torch.cuda.Stream(self._device) for way in DEVICE_WAYS}

    def pieces(
        self, device_blocks: Sequence[int], host_blocks: Sequence[int]
    ) -> Sequence[Descriptor]:
        return describe(device_blocks, host_blocks)

    def mark(self) -> torch.cuda.Event:
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self._device))
        return event

    def begin(
        self, direction: Direction, descriptors: Sequence[Descriptor], after: torch.cuda.Event
    ) -> torch.cuda.Event:
        runs = np.array([(d.device_start, d.host_start, d.num_blocks) for d in descriptors])
        on_device = self._device_starts + runs[:, 0] * self._block_bytes
        on_host = self._host_starts + runs[:, 1] * self._block_bytes
        sizes = runs[:, 2] * self._block_bytes
        is_out = direction is Direction.OUT
        source, target = (on_device, on_host) if is_out else (on_host, on_device)
        stream = self._streams[direction]
        landed = torch.cuda.Event(blocking=True)  # whoever waits sleeps
        with torch.cuda.device(self._device), torch.cuda.stream(stream):
            stream.wait_event(after)
            ops.swap_blocks_batch(_pointers(source), _pointers(target), _pointers(sizes))
            landed.record(stream)
        return landed

    def finish(self, ticket: torch.cuda.Event) -> None:
        ticket.synchronize()

    def order_device_behind(self, ticket: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self._device).wait_event(ticket)


class BlockwiseCudaCopier(CudaCopier):
    """A call of the driver for every block, as engines did before: to compare with."""

    def pieces(
        self, device_blocks: Sequence[int], host_blocks: Sequence[int]
    ) -> Sequence[Descriptor]:
        return one_by_one(device_blocks, host_blocks)

    def begin(
        self, direction: Direction, descriptors: Sequence[Descriptor], after: torch.cuda.Event
    ) -> torch.cuda.Event:
        for one in descriptors:
            landed = super().begin(direction, [one], after)
        return landed  # all copies of a direction are on one stream


def _column(numbers: list[int]) -> np.ndarray:
    """One row per layer, to be broadcast over the runs."""
    return np.array(numbers, dtype=np.int64)[:, np.newaxis]


def _pointers(table: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(table.astype(np.int64).ravel())
