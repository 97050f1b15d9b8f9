"""Where the bytes of a block lie, for the orders that attention backends use."""

import pytest
import torch

from kv.errors import KVLayoutError
from kv.layout import Placement, block_rows

NUM_BLOCKS, PAGE = 4, 8


def memory(num_bytes: int) -> torch.Tensor:
    return torch.arange(num_bytes, dtype=torch.uint8)


def test_layer_after_layer() -> None:
    """With layers outermost, each layer is rows of its own, one page long."""
    span = NUM_BLOCKS * PAGE

    rows = block_rows(
        memory(2 * span),
        [Placement(("a", "b"), 0, layer_stride=span, block_stride=PAGE)],
        NUM_BLOCKS,
    )

    assert {name: row.shape for name, row in rows.items()} == {"a": (4, 8), "b": (4, 8)}
    assert rows["b"][1].tolist() == list(range(span + PAGE, span + 2 * PAGE))


def test_block_after_block() -> None:
    """With blocks outermost, a row is one block of all layers, whichever layers share it."""
    placements = [
        Placement(("a", "b"), 0, layer_stride=PAGE, block_stride=3 * PAGE),
        Placement(("c",), 2 * PAGE, layer_stride=PAGE, block_stride=3 * PAGE),
    ]

    rows = block_rows(memory(NUM_BLOCKS * 3 * PAGE), placements, NUM_BLOCKS)

    [(name, row)] = rows.items()
    assert (name, row.shape) == ("a", (NUM_BLOCKS, 3 * PAGE))
    assert row[1].tolist() == list(range(3 * PAGE, 6 * PAGE))


def test_heads_apart() -> None:
    """Where a layer keeps its heads apart, a block has a row per head."""
    head_page = PAGE // 2
    span = NUM_BLOCKS * head_page
    placement = Placement(("a",), 0, layer_stride=2 * span, block_stride=head_page)

    rows = block_rows(memory(2 * span), [placement], NUM_BLOCKS)

    assert list(rows) == ["a.0", "a.1"]
    assert rows["a.1"][0].tolist() == list(range(span, span + head_page))


@pytest.mark.parametrize(
    ("placement", "problem"),
    [
        (Placement(("a",), 8, layer_stride=32, block_stride=8), "end at byte 40 of 32"),
        (Placement(("a",), 0, layer_stride=40, block_stride=8), "40 bytes are no multiple"),
    ],
    ids=["past the end", "stray bytes"],
)
def test_a_placement_that_cannot_be_is_refused(placement: Placement, problem: str) -> None:
    """Layers that end past their memory, or leave stray bytes, are an error, not a guess."""
    with pytest.raises(KVLayoutError, match=problem):
        block_rows(memory(32), [placement], NUM_BLOCKS)


def test_rows_are_views() -> None:
    """Writing a row writes the engine's own memory."""
    engine = memory(32)
    rows = block_rows(engine, [Placement(("a",), 0, layer_stride=32, block_stride=8)], NUM_BLOCKS)

    rows["a"][2].zero_()

    assert engine[16:24].tolist() == [0] * 8
