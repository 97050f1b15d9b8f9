"""Host memory for KV: how much the machine can spare, its allocation, and rows cut out of it."""

from collections.abc import Iterable, Mapping
from mmap import PAGESIZE
from pathlib import Path

import psutil
import torch

from kv.errors import HostMemorySizeError

GIB = 2**30
# What the rest of the machine may still need is not ours to take.
SPARED_SHARE = 0.05


def free_bytes(cgroup: Path = Path("/sys/fs/cgroup")) -> int:
    """Memory that could still be used: the machine's, or what is left of the container's limit."""
    free = psutil.virtual_memory().available
    try:
        limit = (cgroup / "memory.max").read_text().strip()
        used = int((cgroup / "memory.current").read_text())
        reclaimable = dict(
            line.split() for line in (cgroup / "memory.stat").read_text().splitlines()
        ).get("inactive_file", "0")
    except OSError:
        return free  # no such limit on this machine
    if limit == "max":
        return free
    return min(free, int(limit) - used + int(reclaimable))


def check_fits(wanted_gib: float, num_bytes: int, free: int) -> None:
    """Refuse a size that would leave the machine without memory.

    ``num_bytes`` is what ``wanted_gib`` takes of the ``free`` bytes.

    Raises:
        HostMemorySizeError: with the size that would fit.
    """
    usable = int(free * (1 - SPARED_SHARE))
    if num_bytes > usable:
        fitting_gib = wanted_gib * usable / num_bytes
        problem = f"{free / GIB:.1f} GiB of memory are free here, so at most {fitting_gib:.1f} fit"
        raise HostMemorySizeError(wanted_gib, problem)


def allocate(
    device_rows: Mapping[str, torch.Tensor], num_host_blocks: int
) -> dict[str, torch.Tensor]:
    """Rows of host memory to match a device's: ``(num_host_blocks, bytes)`` each."""
    rows = {}
    for name, device in device_rows.items():
        rows[name] = torch.empty((num_host_blocks, device.shape[1]), dtype=torch.uint8)
        # Written now: the first write to a page costs several times a copy's, and a machine that
        # has promised more memory than it has should fail at start.
        rows[name].zero_()
    return rows


def rows_in(
    memory: torch.Tensor, device_rows: Mapping[str, torch.Tensor], num_host_blocks: int
) -> dict[str, torch.Tensor]:
    """The same as ``allocate`` within ``memory`` of ``rows_bytes`` bytes, whose content stays."""
    rows, start = {}, 0
    for name, device in device_rows.items():
        end = start + num_host_blocks * device.shape[1]
        rows[name] = memory[start:end].view(num_host_blocks, device.shape[1])
        start = end
    return rows


def rows_bytes(device_rows: Mapping[str, torch.Tensor], num_host_blocks: int) -> int:
    return num_host_blocks * sum(device.shape[1] for device in device_rows.values())


def pin(rows: Iterable[torch.Tensor], wanted_gib: float) -> None:
    """Lock rows for the GPU's copies, as they lie: each layer's by themselves.

    Drivers refuse a single piece of hundreds of GiB, and no copy goes from one layer's rows into
    another's. torch's own pinned tensors would round up to the next power of two.

    Raises:
        HostMemorySizeError: the driver refuses, with what it would take. Nothing stays pinned.
    """
    cudart = torch.cuda.cudart()
    pieces = _pieces(rows)
    for number, (start, end) in enumerate(pieces):
        failure = cudart.cudaHostRegister(start, end - start, 0)
        if failure.value:
            for pinned, _ in pieces[:number]:
                cudart.cudaHostUnregister(pinned)
            share = sum(end - start for start, end in pieces[:number]) / sum(
                end - start for start, end in pieces
            )
            problem = (
                f"the GPU's driver refused to pin more than {wanted_gib * share:.1f} GiB of it "
                f"(CUDA error {failure}); is locked memory limited here (ulimit -l)?"
            )
            raise HostMemorySizeError(wanted_gib, problem)


def _pieces(rows: Iterable[torch.Tensor]) -> list[tuple[int, int]]:
    """Where each layer's rows begin and end; layers that share a page are one piece."""
    pieces: list[tuple[int, int]] = []
    for layer in rows:
        start, end = layer.data_ptr(), layer.data_ptr() + layer.nbytes
        if pieces and pieces[-1][1] == start and start % PAGESIZE:
            pieces[-1] = pieces[-1][0], end
        else:
            pieces.append((start, end))
    return pieces
