"""`bench swap` sets the speed of swaps beside one plain copy and beside single blocks."""

from argparse import ArgumentParser, Namespace

import pytest
from rich.console import Console

from app.errors import UsageError
from ops.bench import swap
from ops.bench.swap import summarise, table
from ops.bench.swap_times import SwapShape, SwapTimes

WAYS = ("out", "in", "duplex")


def parse(*arguments: str) -> Namespace:
    parser = ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    swap.add_arguments(parser)
    return parser.parse_args(arguments)


def test_speeds_are_bytes_over_median_seconds_and_duplex_counts_both_directions() -> None:
    """One slow swap moves none of the numbers."""
    shape = SwapShape(num_blocks=100, num_layers=10, row_bytes=10**6, pool_use=0.9)  # 1 GB
    seconds = {"fastswitch": 0.125, "ceiling": 0.1, "blockwise": 0.5}
    times = SwapTimes(
        shape,
        {(mover, way): [took, took, 9.0] for mover, took in seconds.items() for way in WAYS},
        dispatches_s=[50e-6, 50e-6, 1.0],
        num_descriptors=[4, 6],
    )

    keys = summarise(times)

    assert [keys[f"{way}_gb_s"] for way in WAYS] == [8.0, 8.0, 16.0]
    assert [keys[f"ceiling_{way}_gb_s"] for way in WAYS] == [10.0, 10.0, 20.0]
    assert [keys[f"blockwise_{way}_gb_s"] for way in WAYS] == [2.0, 2.0, 4.0]
    assert keys["share_of_ceiling"] == {"out": 0.8, "in": 0.8, "duplex": 0.8}
    assert keys["times_blockwise"] == {"out": 4.0, "in": 4.0, "duplex": 4.0}
    assert (keys["mean_run_blocks"], keys["descriptors_per_swap"]) == (20.0, 5.0)
    assert keys["dispatch_us"] == 50.0


def test_a_pool_holds_at_least_four_requests_of_the_size() -> None:
    """However little of it is used: two are swapped at once, each may be twice as large."""
    shape = SwapShape(num_blocks=1000, num_layers=1, row_bytes=1, pool_use=0.1)
    assert shape.pool_blocks * 0.1 >= 4000


def test_real_swaps_are_measured_for_every_size() -> None:
    """Small ones: every key is there, and every number above zero."""
    arguments = ("--context-tokens", "256,64", "--layers", "2", "--block-kib", "1")
    keys = swap.run(parse(*arguments, "--repeats", "2")).keys

    assert [*keys["contexts"]] == ["64", "256"]
    for numbers in (keys, *keys["contexts"].values()):
        speeds = [numbers[f"{who}{way}_gb_s"] for who in ("", "ceiling_") for way in WAYS]
        assert min(*speeds, numbers["dispatch_us"], numbers["descriptors_per_swap"]) > 0
        assert numbers["mean_run_blocks"] >= 1
    assert keys["swap_mib"] == keys["contexts"]["64"]["swap_mib"]
    console = Console(record=True, width=100)
    console.print(table(keys))
    assert "duplex" in console.export_text()


def test_more_than_the_machine_has_is_refused_before_it_is_taken() -> None:
    """With what was wanted and what there is."""
    with pytest.raises(UsageError, match=r"need \d+\.\d GiB, \d+\.\d are free"):
        swap.run(parse("--context-tokens", "1000000000"))


@pytest.mark.parametrize(
    "arguments",
    [("--context-tokens", "1024,"), ("--context-tokens", "-1"), ("--pool-use", "2")],
)
def test_wrong_usage_ends_with_status_2(
    arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any memory is taken."""
    with pytest.raises(SystemExit) as ended:
        parse(*arguments)
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err
