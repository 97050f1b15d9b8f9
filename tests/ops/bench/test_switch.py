"""`bench switch` compares what becomes of a switched request's KV."""

import gzip
import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest
from msgspec import structs
from rich.console import Console

from app.demo_model import write_demo_model
from kv.transfer_config import PARTS
from ops.bench import switch
from ops.bench.errors import TraceError
from ops.bench.plot import plot_switch
from ops.bench.replay import ReplayResult, since
from ops.bench.switch import compare, describe, make_workload, summarise, table
from ops.bench.switch_modes import available_modes, kv_transfer
from scheduler.reports import SwitchCounts

COUNTS = SwitchCounts(
    preemptions=3, blocks_out=30, blocks_in=50, descriptors_out=3, descriptors_in=5, stall_s=0.05
)
OURS = ReplayResult(1.0, 100, [0.1, 0.2], [0.01] * 8, [[1, 2], [3]], COUNTS)
PERCENTILES = {"p50", "p95", "p99", "p999"}


def parse(*arguments: str) -> Namespace:
    parser = ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    switch.add_arguments(parser)
    return parser.parse_args(arguments)


def test_a_modes_numbers_are_those_that_are_promised() -> None:
    """Counts of all repeats together, latencies pooled."""
    summary = summarise([OURS, OURS])
    assert summary.keys() >= {
        *("ttft_ms", "tbt_ms", "throughput_tok_s", "switches", "recomputed_tokens", "blocks_out"),
        *("blocks_in", "descriptors", "mean_run_blocks", "stall_share", "outputs_sha256"),
    }
    assert summary["ttft_ms"].keys() == summary["tbt_ms"].keys() == PERCENTILES
    assert summary["ttft_ms"]["p50"] == 150.0
    assert (summary["switches"], summary["blocks_out"], summary["descriptors"]) == (6, 60, 16)
    assert (summary["mean_run_blocks"], summary["stall_share"]) == (10.0, 0.05)
    assert summary["throughput_tok_s"] == 3.0


def test_where_nothing_was_copied_there_is_no_mean_run() -> None:
    """Recomputing moves no blocks: that is no run of length 0."""
    idle = structs.replace(OURS, switches=SwitchCounts(preemptions=3))
    assert summarise([idle])["mean_run_blocks"] is None


def test_speedups_are_above_one_where_ours_is_better() -> None:
    """Latencies as theirs over ours, throughput as ours over theirs."""
    theirs = structs.replace(OURS, wall_s=2.0, first_tokens_s=[0.3, 0.6], gaps_s=[0.04])
    keys = compare({"recompute": [theirs], "fastswitch": [OURS]})
    assert keys["speedup"] == {
        "recompute": {
            "ttft_p95": 3.0,
            "ttft_p99": 3.0,
            "ttft_p999": 3.0,
            "tbt_p999": 4.0,
            "throughput": 2.0,
        }
    }


def test_without_our_mode_there_is_nothing_to_compare_with() -> None:
    """The other modes can be run alone."""
    assert compare({"recompute": [OURS]})["speedup"] == {}


def test_what_reuse_saves_is_a_share_of_the_blocks_copied_without_it() -> None:
    """None where one of the two modes was left out."""
    many = structs.replace(OURS, switches=structs.replace(COUNTS, blocks_out=120))
    both = {"fastswitch": [OURS], "fastswitch_without_reuse": [many]}
    assert compare(both)["blocks_out_saved_by_reuse"] == 0.75
    assert compare({"fastswitch": [OURS]})["blocks_out_saved_by_reuse"] is None


def test_one_token_that_differs_is_told() -> None:
    """Switching must not change what anybody gets."""
    other = structs.replace(OURS, outputs=[[1, 2], [4]])
    assert compare({"recompute": [OURS], "fastswitch": [OURS]})["outputs_equal"] is True
    assert compare({"recompute": [other], "fastswitch": [OURS]})["outputs_equal"] is False


def test_counts_are_those_of_the_replay_alone() -> None:
    """What the warm-up did is taken off."""
    before = SwitchCounts(preemptions=1, blocks_out=10, stall_s=0.02)
    after = since(before, COUNTS)
    assert (after.preemptions, after.blocks_out, after.blocks_in) == (2, 20, 50)
    assert after.stall_s == pytest.approx(0.03)


def test_the_device_holds_its_share_of_the_working_set_and_at_least_the_longest() -> None:
    """Memory is short by as much as was asked for, and never too short to run at all."""
    some = make_workload(parse("--device-share", "0.5"), 0)
    assert some.device_blocks == round(some.working_set_blocks / 2)
    least = make_workload(parse("--device-share", "0.001"), 0)
    assert (least.device_blocks - 1) * 32 >= least.longest


def test_repeats_play_other_conversations() -> None:
    """Of the same shape, from the same seed."""
    options = parse("--seed", "3")
    assert make_workload(options, 0) == make_workload(options, 0)
    assert make_workload(options, 0) != make_workload(options, 1)


def test_a_trace_without_conversations_of_several_turns_is_refused(tmp_path: Path) -> None:
    """There would be nothing to switch back to."""
    row = {"conversation": "c", "history_tokens": 0, "input_tokens": 9, "output_tokens": 9}
    path = tmp_path / "trace.jsonl.gz"
    path.write_bytes(gzip.compress(json.dumps(row).encode()))
    with pytest.raises(TraceError, match="no conversation has more than one turn"):
        make_workload(parse("--trace", str(path)), 0)


def test_each_mode_leaves_out_what_its_name_says() -> None:
    """Recomputing has no connector; the paper's baseline is ours without any of its parts."""
    assert kv_transfer("recompute", 1.0) is None
    parts = {
        mode: set(transfer["kv_connector_extra_config"].get("without", ()))
        for mode in available_modes()
        if mode != "offload" and (transfer := kv_transfer(mode, 1.0)) is not None
    }
    assert parts == {
        "swap_blocking": PARTS,
        "fastswitch": set(),
        **{f"fastswitch_without_{part}": {part} for part in PARTS},
    }


@pytest.mark.parametrize(
    "arguments",
    [
        ("--modes", "recompute,unknown"),
        ("--modes", "recompute,recompute"),
        ("--modes", ""),
        ("--device-share", "1.5"),
        ("--device-share", "0"),
        ("--frequency", "nan"),
        ("--host-kv-gib", "-1"),
        ("--conversations", "0"),
        ("--pattern", "fifo"),
    ],
)
def test_wrong_usage_ends_with_status_2(
    arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Before anything is started."""
    with pytest.raises(SystemExit) as ended:
        parse(*arguments)
    assert ended.value.code == 2
    assert arguments[0] in capsys.readouterr().err


def test_people_get_a_table_and_a_picture(tmp_path: Path) -> None:
    """A row and a bar for each mode."""
    options = parse("--modes", "recompute,fastswitch")
    keys = compare({"recompute": [OURS], "fastswitch": [OURS]})
    keys |= describe([make_workload(options, 0)], options)
    console = Console(record=True, width=120)
    console.print(table(keys))
    assert "fastswitch" in console.export_text()
    plot_switch(keys, tmp_path / "switch.png")
    assert (tmp_path / "switch.png").stat().st_size > 1000


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_switched_requests_keep_their_tokens_and_recompute_nothing(tmp_path: Path) -> None:
    """On real engines short of memory: both modes switch, and only one computes again."""
    write_demo_model(tmp_path / "tiny", "tiny")
    options = parse(
        *("--modes", "recompute,fastswitch", "--model", str(tmp_path / "tiny")),
        *("--conversations", "8", "--turns", "3", "--context-tokens", "1024"),
        *("--frequency", "0.1", "--arrivals-s", "0.1", "--pause-s", "0.05"),
        *("--device-share", "0.25", "--pattern", "random"),
    )
    keys = switch.run(options).keys
    recompute, ours = keys["modes"]["recompute"], keys["modes"]["fastswitch"]
    assert keys["outputs_equal"] is True
    assert min(recompute["switches"], ours["switches"]) > 0
    assert recompute["recomputed_tokens"] > ours["recomputed_tokens"]
    assert (recompute["blocks_out"], recompute["blocks_in"]) == (0, 0)
    assert min(ours["blocks_out"], ours["blocks_in"]) > 0
    assert keys["speedup"].keys() == {"recompute"}
