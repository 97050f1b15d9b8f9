"""Throughput and percentiles follow from the tokens and the times that clients saw."""

import pytest

from ops.bench.latency import percentiles_ms, summarise, throughput_tok_s, token_gaps_s
from ops.bench.load import LoadResult, Measured


def measured(ttft_s: float, gaps_s: list[float], num_tokens: int | None = None) -> Measured:
    return Measured(ttft_s, gaps_s, len(gaps_s) + 1 if num_tokens is None else num_tokens, "")


def test_every_token_but_the_first_has_a_gap() -> None:
    """Tokens that came with another are 0 apart, so that a request has one gap per token."""
    assert token_gaps_s(measured(0.1, [0.2, 0.3], num_tokens=5)) == [0.2, 0.3, 0.0, 0.0]


def test_throughput_is_tokens_over_the_whole_time() -> None:
    """All output tokens, from the first request to the last byte."""
    assert throughput_tok_s(LoadResult(2.0, [measured(0.1, [0.1] * 9)] * 3)) == 15


def test_repeats_give_their_median_throughput_and_pool_their_times() -> None:
    """One slow repeat moves neither the throughput nor the medians."""
    fast, slow = measured(0.1, [0.01, 0.01]), measured(5.0, [1.0])
    results = [LoadResult(1.0, [fast]), LoadResult(1.0, [fast]), LoadResult(100.0, [slow])]

    summary = summarise(results)

    assert summary["throughput_tok_s"] == 3
    assert (summary["ttft_ms"]["p50"], summary["tbt_ms"]["p50"]) == (100, 10)
    assert summary["ttft_ms"]["p99"] > 4000
    assert (summary["requests"], summary["output_tokens"]) == (3, 8)


def test_tokens_per_event_shows_how_far_a_server_lags() -> None:
    """Six tokens in three events are two per event."""
    summary = summarise([LoadResult(1.0, [measured(0.1, [0.1, 0.1], num_tokens=6)])])
    assert summary["tokens_per_event"] == 2


def test_percentiles_are_in_milliseconds() -> None:
    """Seconds in, milliseconds out; of nothing, nothing."""
    assert percentiles_ms([0.001 * number for number in range(101)]) == pytest.approx(
        {"p50": 50.0, "p99": 99.0}
    )
    assert percentiles_ms([]) == {"p50": 0.0, "p99": 0.0}
