"""`bench serve` compares two servers by what their clients saw."""

import gzip
import json
from argparse import ArgumentParser, Namespace
from pathlib import Path

import pytest
from rich.console import Console

from app.errors import UsageError
from ops.bench import serve
from ops.bench.errors import TraceError
from ops.bench.load import LoadResult, Measured
from ops.bench.plot import plot_serve
from ops.bench.serve import Turn, Workload, compare, table
from ops.bench.workload import Span

SPANS = Workload(4, 2, Span(8, 8), Span(8, 8), trace=None)


def parse(*arguments: str) -> Namespace:
    parser = ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    serve.add_arguments(parser)
    return parser.parse_args(arguments)


def make_turn(wall_s: float, ttft_s: float, output: list[int] | str = "same") -> Turn:
    request = Measured(ttft_s, [0.01] * 9, 10, output)
    memory = {
        "engine": {"processes": 1, "rss": 100.0, "pss": 90.0, "uss": 80.0},
        "total": {"processes": 1, "rss": 100.0, "pss": 90.0, "uss": 80.0},
    }
    return Turn(LoadResult(wall_s, [request] * 4), LoadResult(wall_s, [request]), memory)


def test_the_result_has_the_keys_that_are_promised() -> None:
    """Both servers at all streams and at one, with the ratio and the difference."""
    keys = compare([make_turn(1.0, 0.010)] * 3, [make_turn(1.25, 0.014)] * 3)
    for results in (keys, keys["single"]):
        for name in ("baseline", "fastswitch"):
            numbers = results[name]
            assert {"throughput_tok_s", "ttft_ms", "tbt_ms"} <= set(numbers)
            assert set(numbers["ttft_ms"]) == set(numbers["tbt_ms"]) == {"p50", "p99"}
    assert keys["baseline"]["throughput_tok_s"] == 40
    assert keys["fastswitch"]["throughput_tok_s"] == 32
    assert keys["throughput_ratio"] == 0.8
    assert keys["throughput_ratio_per_repeat"] == [0.8] * 3
    assert keys["ttft_p50_delta_ms"] == 4.0


def test_outputs_are_compared_request_by_request() -> None:
    """One token that differs at one stream is enough; at all streams the share is told."""
    same, other = make_turn(1.0, 0.1, [1, 2]), make_turn(1.0, 0.1, [1, 3])
    assert compare([same], [same])["outputs_equal"] is True
    mixed = compare([same, same], [same, other])
    assert (mixed["outputs_equal"], mixed["outputs_equal_share"]) == (False, 0.5)


def test_the_table_and_the_picture_show_the_result(tmp_path: Path) -> None:
    """People get a table, and a picture if they ask for one."""
    keys = compare([make_turn(1.0, 0.010)], [make_turn(1.25, 0.014)])
    keys["workload"] = {"streams": 32}
    console = Console(record=True, width=100)
    console.print(table(keys))
    plot_serve(keys, tmp_path / "serve.png")

    assert "throughput x 0.8" in console.export_text()
    assert (tmp_path / "serve.png").read_bytes().startswith(b"\x89PNG")


def test_requests_the_model_cannot_take_are_refused_before_they_are_sent() -> None:
    """The spans' longest request has to fit."""
    with pytest.raises(UsageError, match="the model takes 15 tokens"):
        SPANS.items("0", 4, max_model_len=15)
    assert len(SPANS.items("0", 4, max_model_len=16)) == 4


def test_a_trace_gives_as_many_requests_as_it_has_that_fit(tmp_path: Path) -> None:
    """Fewer than asked for, if there are no more; an error if there is none."""
    path = tmp_path / "t.jsonl.gz"
    row = {"conversation": "c", "history_tokens": 0, "input_tokens": 8, "output_tokens": 8}
    path.write_bytes(gzip.compress(json.dumps(row).encode()))
    workload = Workload(4, 2, Span(8, 8), Span(8, 8), trace=path)
    assert len(workload.items("0", 4, max_model_len=16)) == 1
    with pytest.raises(TraceError, match="no request fits into 15 tokens"):
        workload.items("0", 4, max_model_len=15)


@pytest.mark.parametrize(
    "arguments",
    [("--streams", "0"), ("--repeats", "-1"), ("--prompt-tokens", "9:3"), ("--requests", "many")],
)
def test_wrong_arguments_are_wrong_usage(
    arguments: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2 and the argument by its name."""
    with pytest.raises(SystemExit) as caught:
        parse(*arguments)
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err
