"""Numbers of several tenants count every request that was due, answered or not."""

import pytest

from ops.bench.tenant_latency import num_rejected, summarise_ttft, throughput_tok_s, ttfts_s
from ops.bench.tenant_load import Answer, TenantLoadResult

ANSWERED = Answer("quiet", 1.0, [1.5, 2.0, 2.5], 6, 200)
CUT = Answer("flood", 0.0, [9.0, 11.0], None, 200)
WAITED = Answer("quiet", 4.0, [], None, None)
REFUSED = Answer("quiet", 5.0, [], None, 429)
RESULT = TenantLoadResult(begin_s=100.0, cut_s=12.0, answers=[ANSWERED, CUT, WAITED, REFUSED])


def test_a_request_without_a_token_counts_with_what_it_waited() -> None:
    """Leaving it out would flatter whoever starves most."""
    assert ttfts_s([RESULT], ["quiet"]) == [0.5, 8.0]
    assert ttfts_s([RESULT], ["quiet"], since_s=1.5) == [8.0]
    summary = summarise_ttft([RESULT, RESULT], {"quiet"})
    assert (summary["requests"], summary["unanswered"]) == (6, 2)
    assert summary["ttft_ms"]["p99"] == 8000


def test_refusals_are_counted_whoever_got_them() -> None:
    """They have no TTFT, and are not passed over."""
    assert num_rejected([RESULT, RESULT]) == 2


def test_throughput_counts_what_came_in_time() -> None:
    """Requests cut off count by their events, with as many tokens in each as the finished had."""
    assert throughput_tok_s(RESULT, duration_s=10.0) == pytest.approx((6 + 2) / 10)
    assert throughput_tok_s(RESULT, duration_s=2.0) == pytest.approx(4 / 2)
    nothing_finished = TenantLoadResult(0.0, 12.0, [CUT])
    assert throughput_tok_s(nothing_finished, duration_s=10.0) == pytest.approx(0.1)
