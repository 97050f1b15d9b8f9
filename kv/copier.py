"""Copies runs of blocks between device and host memory.

Owns tensors and nothing else. Both sides are ``(num_blocks, bytes)`` rows per layer
(``kv.layout``), so a run of blocks is one contiguous piece of each layer. ``kv.vllm_cuda_copier``
does the same where the device is a GPU.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from kv.runs import Descriptor, describe, one_by_one
from kv.swap_plan import Direction


class Copier(Protocol):
    """Moves blocks for ``kv.swap_manager``.

    ``begin`` returns a ticket once the copy is ordered, ``finish`` waits until it has landed.
    Where ``is_stream_ordered``, the device itself can put what it computes next behind a copy
    that has begun; elsewhere, only landed copies count.
    """

    is_stream_ordered: bool

    def pieces(
        self, device_blocks: Sequence[int], host_blocks: Sequence[int]
    ) -> Sequence[Descriptor]:
        """In how many copies it moves ``device_blocks[i]`` to or from ``host_blocks[i]``."""
        ...

    def mark(self) -> Any:
        """What the device has been given to compute so far; called by the engine's thread."""
        ...

    def begin(self, direction: Direction, descriptors: Sequence[Descriptor], after: Any) -> Any:
        """Copy when what ``after`` marks has been computed."""
        ...

    def finish(self, ticket: Any) -> None: ...

    def order_device_behind(self, ticket: Any) -> None:
        """Compute nothing more until the copy has landed; called by the engine's thread."""
        ...


class CpuCopier:
    """Between two parts of the machine's own memory: done when ``begin`` returns."""

    is_stream_ordered = False

    def __init__(
        self, device: Mapping[str, torch.Tensor], host: Mapping[str, torch.Tensor]
    ) -> None:
        # numpy copies a run with memcpy's speed and lets other threads run meanwhile (two x86
        # cores, runs of 32 blocks of 16 KiB: 21 GB/s, torch's copy_ 15, one large memcpy 19).
        self._layers = [(device[name].numpy(), host[name].numpy()) for name in device]

    def pieces(
        self, device_blocks: Sequence[int], host_blocks: Sequence[int]
    ) -> Sequence[Descriptor]:
        return describe(device_blocks, host_blocks)

    def mark(self) -> None:
        return None

    def begin(
        self, direction: Direction, descriptors: Sequence[Descriptor], after: None = None
    ) -> None:
        for device, host in self._layers:
            for one in descriptors:
                on_device = slice(one.device_start, one.device_start + one.num_blocks)
                on_host = slice(one.host_start, one.host_start + one.num_blocks)
                if direction is Direction.OUT:
                    host[on_host] = device[on_device]
                else:
                    device[on_device] = host[on_host]

    def finish(self, ticket: None) -> None:
        return None

    def order_device_behind(self, ticket: None) -> None:
        return None


class BlockwiseCopier(CpuCopier):
    """One copy per block and layer, as engines did before: for benchmarks to compare with."""

    def __init__(
        self, device: Mapping[str, torch.Tensor], host: Mapping[str, torch.Tensor]
    ) -> None:
        super().__init__(device, host)
        self._tensors = [(device[name], host[name]) for name in device]

    def pieces(
        self, device_blocks: Sequence[int], host_blocks: Sequence[int]
    ) -> Sequence[Descriptor]:
        return one_by_one(device_blocks, host_blocks)

    def begin(
        self, direction: Direction, descriptors: Sequence[Descriptor], after: None = None
    ) -> None:
        for device, host in self._tensors:
            for one in descriptors:
                for offset in range(one.num_blocks):
                    on_device = device[one.device_start + offset]
                    on_host = host[one.host_start + offset]
                    if direction is Direction.OUT:
                        on_host.copy_(on_device)
                    else:
                        on_device.copy_(on_host)
