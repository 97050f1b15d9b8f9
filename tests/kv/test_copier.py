"""Whole blocks between device and host memory."""

import pytest
import torch

from kv.copier import BlockCopier, CpuCopier, CudaCopier
from kv.swap import BlockCopies

NUM_BLOCKS, BLOCK_BYTES = 6, 16


def numbered(*, first: int, device: str = "cpu") -> torch.Tensor:
    rows = torch.arange(first, first + NUM_BLOCKS, dtype=torch.uint8)
    return rows[:, None].repeat(1, BLOCK_BYTES).to(device)


def check_both_ways(
    copier: BlockCopier, device: dict[str, torch.Tensor], host: dict[str, torch.Tensor]
) -> None:
    copier.copy_out(BlockCopies(device_blocks=[4, 1], host_blocks=[0, 5]))
    for rows in device.values():
        rows.zero_()
    copier.copy_in(BlockCopies(device_blocks=[2, 3], host_blocks=[5, 0]))
    for name, first in (("a", 10), ("b", 20)):
        assert [int(row[0]) for row in device[name]] == [0, 0, first + 1, first + 4, 0, 0]
        assert host[name][0].tolist() == [first + 4] * BLOCK_BYTES


def test_cpu_copies_go_both_ways() -> None:
    """Blocks land where the pairs say, in every layer, and others stay as they are."""
    device = {"a": numbered(first=10), "b": numbered(first=20)}
    host = {name: torch.zeros_like(rows) for name, rows in device.items()}

    check_both_ways(CpuCopier(device, host), device, host)


def test_busy_time_is_handed_out_once() -> None:
    """The time spent in copies is reported with the step that spent it, not again."""
    device, host = {"a": numbered(first=10)}, {"a": numbered(first=0)}
    copier = CpuCopier(device, host)

    copier.copy_out(BlockCopies([0], [0]))

    assert copier.take_busy_s() > 0
    assert copier.take_busy_s() == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_gpu_copies_go_both_ways_in_stream_order() -> None:
    """The same on a GPU, through its view of pinned host memory, without waiting in between."""
    from vllm.utils.torch_utils import get_accelerator_view_from_cpu_tensor

    device = {"a": numbered(first=10, device="cuda"), "b": numbered(first=20, device="cuda")}
    host = {
        name: torch.zeros_like(rows, device="cpu").pin_memory() for name, rows in device.items()
    }
    views = {name: get_accelerator_view_from_cpu_tensor(rows) for name, rows in host.items()}
    copier = CudaCopier(device, views)

    check_both_ways(copier, device, views)

    torch.cuda.synchronize()
    assert copier.take_busy_s() > 0
