"""A workload follows from its seed or its trace, and from nothing else."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.bench.errors import TraceError
from ops.bench.workload import Span, TraceRow, fitting, read_trace, replay, synthetic

ROW = {"tenant": "t", "conversation": "c", "turn": 1, "arrival_s": 0.0, "think_s": None}


def write_trace(folder: Path, *rows: dict[str, object]) -> Path:
    path = folder / "trace.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    return path


def test_a_seed_gives_the_same_requests_again_and_another_seed_others() -> None:
    """Both servers of a comparison get equal requests; another repeat gets new ones."""
    first, again, other = (
        synthetic(seed, 5, prompt=Span(4, 9), output=Span(2, 3)) for seed in ("1", "1", "2")
    )
    assert first == again
    assert not {tuple(item.prompt) for item in first} & {tuple(item.prompt) for item in other}


@given(st.integers(1, 50), st.integers(0, 20), st.integers(0, 2**32))
def test_lengths_stay_within_their_span(low: int, extra: int, seed: int) -> None:
    """Every prompt and output is as long as was asked for, ends included."""
    span = Span(low, low + extra)
    for item in synthetic(str(seed), 10, prompt=span, output=span):
        assert span.low <= len(item.prompt) <= span.high
        assert span.low <= item.output_tokens <= span.high


@pytest.mark.parametrize(
    ("text", "span"), [("64:192", Span(64, 192)), ("128", Span(128, 128)), ("1:1", Span(1, 1))]
)
def test_a_span_is_two_counts_or_one(text: str, span: Span) -> None:
    """One count alone means exactly that many tokens."""
    assert Span.parse(text) == span


@pytest.mark.parametrize("text", ["", "a:b", "9:3", "0:4", "-1", "1:2:3", "1.5"])
def test_what_is_no_span_is_refused(text: str) -> None:
    """Not a count, or upside down, or below one token."""
    with pytest.raises(ValueError, match="is no span of token counts"):
        Span.parse(text)


def test_a_traces_rows_keep_their_lengths_and_their_order(tmp_path: Path) -> None:
    """The prompt of a replayed request is history and new input together."""
    path = write_trace(
        tmp_path,
        {**ROW, "history_tokens": 0, "input_tokens": 7, "output_tokens": 3},
        {**ROW, "history_tokens": 10, "input_tokens": 5, "output_tokens": 4, "turn": 2},
    )
    items = replay(read_trace(path), "0")
    assert [(len(item.prompt), item.output_tokens) for item in items] == [(7, 3), (15, 4)]
    assert {item.conversation for item in items} == {"c"}


def test_turns_of_a_conversation_share_their_beginning() -> None:
    """A later turn begins with the earlier one's prompt; another conversation does not."""
    rows = [TraceRow("a", 0, 6, 1), TraceRow("a", 6, 4, 1), TraceRow("b", 0, 6, 1)]
    first, second, other = replay(rows, "0")
    assert second.prompt[:6] == first.prompt
    assert other.prompt != first.prompt


def test_rows_the_model_cannot_take_are_left_out() -> None:
    """Prompt and output have to fit together."""
    rows = [TraceRow("a", 0, 6, 4), TraceRow("b", 0, 7, 4), TraceRow("c", 5, 1, 5)]
    assert [row.conversation for row in fitting(rows, max_model_len=10)] == ["a"]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read"),
        (b"not gzip", "cannot be read"),
        (gzip.compress(b"{}" * 100)[:-9], "cannot be read"),
        (gzip.compress(b'{"conversation": "c"}\n'), "a row is not one"),
        (gzip.compress(b"no json\n"), "a row is not one"),
    ],
)
def test_a_bad_trace_is_named_with_what_is_wrong(
    tmp_path: Path, content: bytes | None, problem: str
) -> None:
    """Missing, not gzip, cut off, without its fields: one sentence that names the file."""
    path = tmp_path / "trace.jsonl.gz"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(TraceError, match=problem) as caught:
        read_trace(path)
    assert str(path) in str(caught.value)
