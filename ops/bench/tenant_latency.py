"""From what several tenants' clients saw to numbers: TTFT, throughput, refusals, by tenant.

TTFT counts from when a request was due. One that had no token when the load was cut off counts
with the time that it had waited until then, and is told as unanswered: percentiles that reach it
are lower bounds.
"""

from collections.abc import Collection, Sequence
from typing import Any

from ops.bench.latency import percentiles_ms
from ops.bench.tenant_load import Answer, TenantLoadResult


def ttfts_s(
    results: Sequence[TenantLoadResult], tenants: Collection[str], *, since_s: float = 0.0
) -> list[float]:
    """One for each request of these tenants, due at ``since_s`` or later, that was not refused."""
    return [
        (answer.events_s[0] if answer.events_s else result.cut_s) - answer.due_s
        for result in results
        for answer in result.answers
        if answer.tenant in tenants and answer.due_s >= since_s and not answer.is_rejected
    ]


def summarise_ttft(results: Sequence[TenantLoadResult], tenants: Collection[str]) -> dict[str, Any]:
    """TTFT of these tenants' requests in all loads together."""
    mine = [a for result in results for a in result.answers if a.tenant in tenants]
    waited = [answer for answer in mine if not answer.events_s and not answer.is_rejected]
    return {
        "ttft_ms": percentiles_ms(ttfts_s(results, tenants)),
        "requests": len(mine),
        "unanswered": len(waited),
    }


def num_rejected(results: Sequence[TenantLoadResult]) -> int:
    return sum(answer.is_rejected for result in results for answer in result.answers)


def throughput_tok_s(result: TenantLoadResult, duration_s: float) -> float:
    """Output tokens of all tenants that arrived within the load's first ``duration_s``.

    Tokens that share an event are known of finished requests; those that were cut off are taken
    to have as many per event as the finished ones.
    """
    finished = [answer for answer in result.answers if answer.is_finished]
    num_events = sum(len(answer.events_s) for answer in finished)
    per_event = sum(answer.num_tokens or 0 for answer in finished) / max(num_events, 1)
    return sum(_tokens_until(duration_s, each, per_event) for each in result.answers) / duration_s


def _tokens_until(end_s: float, answer: Answer, per_event: float) -> float:
    num_events = sum(at_s <= end_s for at_s in answer.events_s)
    if answer.num_tokens is not None and answer.events_s:
        return answer.num_tokens * num_events / len(answer.events_s)
    return num_events * (per_event or 1.0)
