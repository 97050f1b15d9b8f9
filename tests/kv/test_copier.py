"""Whole blocks between device and host memory."""

import pytest
import torch

from kv.copier import BlockwiseCopier, Copier, CpuCopier
from kv.runs import Descriptor, describe
from kv.swap_plan import Direction

NUM_BLOCKS, BLOCK_BYTES = 6, 16


def numbered(*, first: int, device: str = "cpu") -> torch.Tensor:
    rows = torch.arange(first, first + NUM_BLOCKS, dtype=torch.uint8)
    return rows[:, None].repeat(1, BLOCK_BYTES).to(device)


def check_both_ways(
    copier: Copier, device: dict[str, torch.Tensor], host: dict[str, torch.Tensor]
) -> None:
    """Blocks 4 and 1 leave together with the run of 2 and 3, and come back elsewhere."""
    out = describe([4, 1, 2, 3], [0, 3, 4, 5])
    copier.finish(copier.begin(Direction.OUT, out, copier.mark()))
    for rows in device.values():
        rows.zero_()
    ticket = copier.begin(Direction.IN, describe([0, 1, 5], [4, 5, 0]), copier.mark())
    copier.order_device_behind(ticket)
    for name, first in (("a", 10), ("b", 20)):
        came_back = device[name].clone()
        assert came_back[:, 0].tolist() == [first + 2, first + 3, 0, 0, 0, first + 4]
        assert came_back[5].tolist() == [first + 4] * BLOCK_BYTES
        assert host[name][:, 0].tolist() == [first + 4, 0, 0, first + 1, first + 2, first + 3]


@pytest.mark.parametrize("copier_class", [CpuCopier, BlockwiseCopier])
def test_cpu_copies_go_both_ways(copier_class: type[CpuCopier]) -> None:
    """Blocks land where the runs say, in every layer, and others stay as they are."""
    device = {"a": numbered(first=10), "b": numbered(first=20)}
    host = {name: torch.zeros_like(rows) for name, rows in device.items()}

    check_both_ways(copier_class(device, host), device, host)


@pytest.mark.parametrize("copier_class", [CpuCopier, BlockwiseCopier])
def test_a_cpu_copy_has_landed_once_it_has_begun(copier_class: type[CpuCopier]) -> None:
    """A CPU keeps no order of its own, so whoever needs the copy has to wait for it."""
    device, host = {"a": numbered(first=10)}, {"a": numbered(first=0)}
    copier: Copier = copier_class(device, host)

    copier.begin(Direction.OUT, [Descriptor(1, 2, 1)], copier.mark())

    assert host["a"][:, 0].tolist() == [0, 1, 11, 3, 4, 5]
    assert not copier.is_stream_ordered


@pytest.mark.parametrize(("copier_class", "num_copies"), [(CpuCopier, 1), (BlockwiseCopier, 3)])
def test_copiers_say_in_how_many_copies_blocks_go(
    copier_class: type[CpuCopier], num_copies: int
) -> None:
    """A run is one for those that know runs, and as many as it has blocks for the other."""
    layers = {"a": numbered(first=10)}

    assert len(copier_class(layers, layers).pieces([1, 2, 3], [0, 1, 2])) == num_copies


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_gpu_copies_go_both_ways_in_stream_order() -> None:
    """The same on a GPU, between it and pinned host memory, whose copies the device waits for."""
    from kv.vllm_cuda_copier import CudaCopier

    device = {"a": numbered(first=10, device="cuda"), "b": numbered(first=20, device="cuda")}
    host = {
        name: torch.zeros_like(rows, device="cpu").pin_memory() for name, rows in device.items()
    }
    copier = CudaCopier(device, host)

    check_both_ways(copier, device, host)

    assert copier.is_stream_ordered


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_gpu_copy_sees_what_was_computed_before_it() -> None:
    """A copy out waits on the device for writes that were queued before its mark."""
    from kv.vllm_cuda_copier import CudaCopier

    device = {"a": torch.zeros((NUM_BLOCKS, 1 << 20), dtype=torch.uint8, device="cuda")}
    host = {"a": torch.zeros((NUM_BLOCKS, 1 << 20), dtype=torch.uint8).pin_memory()}
    copier = CudaCopier(device, host)
    torch.cuda._sleep(100_000_000)
    device["a"].fill_(7)

    copier.finish(copier.begin(Direction.OUT, [Descriptor(0, 0, NUM_BLOCKS)], copier.mark()))

    assert (host["a"] == 7).all()
