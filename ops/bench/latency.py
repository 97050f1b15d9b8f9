"""From what clients measured to the numbers of a report: throughput, TTFT and TBT.

TBT is the time between two tokens as their reader sees it, one value for each token after a
request's first, pooled over all requests. Tokens that came in one event are 0 apart, whoever put
them together: a server that lags shows fewer but longer gaps, and the median alone would flatter
it, so the tail and ``tokens_per_event`` stand beside it.
"""

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from ops.bench.load import LoadResult, Measured


def summarise(results: Sequence[LoadResult]) -> dict[str, Any]:
    """Median throughput of the repeats; percentiles over the requests of all of them together."""
    requests = [request for result in results for request in result.requests]
    num_tokens = sum(request.num_tokens for request in requests)
    gaps_s = [gap_s for request in requests for gap_s in token_gaps_s(request)]
    return {
        "throughput_tok_s": round(median(map(throughput_tok_s, results)), 1),
        "ttft_ms": percentiles_ms([request.ttft_s for request in requests]),
        "tbt_ms": percentiles_ms(gaps_s),
        "requests": len(requests),
        "output_tokens": num_tokens,
        "tokens_per_event": round(num_tokens / sum(one.num_events for one in requests), 3),
    }


def throughput_tok_s(result: LoadResult) -> float:
    """Output tokens per second of wall time, the last requests' lonely end included."""
    return sum(request.num_tokens for request in result.requests) / result.wall_s


def token_gaps_s(request: Measured) -> list[float]:
    """The time before each token but the first."""
    num_together = request.num_tokens - request.num_events
    return [*request.gaps_s, *([0.0] * num_together)]


def percentiles_ms(seconds: Sequence[float], ranks: Sequence[float] = (50, 99)) -> dict[str, float]:
    """By name: ``p50``, ``p99``; ``p999`` is the rank 99.9."""
    return {
        f"p{rank:g}".replace(".", ""): (
            round(float(np.percentile(seconds, rank)) * 1000, 3) if seconds else 0.0
        )
        for rank in ranks
    }
