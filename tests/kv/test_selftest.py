"""The proof at start-up that blocks survive the trip to host memory."""

from collections.abc import Sequence

import pytest
import torch

from kv.copier import BlockwiseCopier, CpuCopier
from kv.errors import KVLayoutError, RoundTripError
from kv.runs import Descriptor
from kv.selftest import check_round_trip
from kv.swap_plan import Direction

NUM_BLOCKS = 8


class LateCopier(CpuCopier):
    """Copies at the last moment it may, as a device of its own does."""

    def __init__(self, device: dict[str, torch.Tensor], host: dict[str, torch.Tensor]) -> None:
        super().__init__(device, host)
        self._begun: list[tuple[Direction, Sequence[Descriptor]]] = []

    def begin(
        self, direction: Direction, descriptors: Sequence[Descriptor], after: None = None
    ) -> None:
        self._begun.append((direction, descriptors))

    def finish(self, ticket: None) -> None:
        for direction, descriptors in self._begun:
            super().begin(direction, descriptors)
        self._begun.clear()


def make_layers(*, num_parts: int = 1) -> dict[str, torch.Tensor]:
    """Two layers as an engine has them: blocks, heads, tokens, contents."""
    shape = (NUM_BLOCKS * num_parts, 2, 4 // num_parts, 6)
    random = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=random) for name in ("first", "second")}


def rows_of(layers: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: layer.view(torch.uint8).view(NUM_BLOCKS, -1) for name, layer in layers.items()}


def host_like(rows: dict[str, torch.Tensor], num_host_blocks: int) -> dict[str, torch.Tensor]:
    return {
        name: torch.zeros((num_host_blocks, row.shape[1]), dtype=torch.uint8)
        for name, row in rows.items()
    }


@pytest.mark.parametrize("num_parts", [1, 2], ids=["whole blocks", "blocks cut in two"])
@pytest.mark.parametrize("num_host_blocks", [1, 8])
@pytest.mark.parametrize("copier_class", [CpuCopier, BlockwiseCopier, LateCopier])
def test_a_right_layout_passes_and_leaves_no_trace(
    num_parts: int, num_host_blocks: int, copier_class: type[CpuCopier]
) -> None:
    """The test puts back what it found, also where a backend cuts blocks into smaller ones."""
    layers = make_layers(num_parts=num_parts)
    before = {name: layer.clone() for name, layer in layers.items()}
    rows = rows_of(layers)
    copier = copier_class(rows, host_like(rows, num_host_blocks))

    check_round_trip(copier, layers, num_blocks=NUM_BLOCKS, num_host_blocks=num_host_blocks)

    assert all(torch.equal(layers[name], before[name]) for name in layers)


def test_rows_that_are_not_the_engines_blocks_are_found() -> None:
    """If rows and blocks are off by one another, the layer and block are named."""
    layers = make_layers()
    rows = rows_of(layers)
    rows["second"] = rows["second"].roll(1, 0)  # a copy: writes to it never reach the engine

    with pytest.raises(RoundTripError, match="KV cache of second: block 0 came back"):
        check_round_trip(
            CpuCopier(rows, host_like(rows, 8)), layers, num_blocks=NUM_BLOCKS, num_host_blocks=8
        )


def test_a_layer_left_out_is_found() -> None:
    """A layer that no row covers loses its content, and is named."""
    layers = make_layers()
    rows = {"first": rows_of(layers)["first"]}

    with pytest.raises(RoundTripError, match="second"):
        check_round_trip(
            CpuCopier(rows, host_like(rows, 8)), layers, num_blocks=NUM_BLOCKS, num_host_blocks=8
        )


def test_a_copy_that_never_happens_is_found() -> None:
    """A copier that moves nothing is found out, and the engine's tensors are put back."""
    layers = make_layers()
    before = {name: layer.clone() for name, layer in layers.items()}

    with pytest.raises(RoundTripError, match="KV cache of first: block 0"):
        check_round_trip(CpuCopier({}, {}), layers, num_blocks=NUM_BLOCKS, num_host_blocks=8)

    assert all(torch.equal(layers[name], before[name]) for name in layers)


def test_a_tensor_without_the_engines_blocks_is_refused() -> None:
    """A layer whose first dimension cannot be the blocks is an error of its own."""
    layers = {"odd": torch.zeros((7, 2))}

    with pytest.raises(KVLayoutError, match=r"shape \(7, 2\) has no 8 blocks"):
        check_round_trip(CpuCopier({}, {}), layers, num_blocks=NUM_BLOCKS, num_host_blocks=8)
