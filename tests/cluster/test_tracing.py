"""Spans of the served fleet, as a collector gets them: one trace from the caller to the engine."""

import asyncio
import secrets
from dataclasses import dataclass

import httpx
import pytest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from ops.tracing import names
from ops.tracing.names import EngineState, Phase
from tests.cluster.fleet import look
from tests.cluster.program import Program
from tests.cluster.traffic import COMPLETIONS, complete, completion
from tests.ops.tracing.stand_in_collector import StandInCollector

pytestmark = pytest.mark.cluster

WHOLE = f"POST {COMPLETIONS}"  # ends last, and is sent last


@dataclass(frozen=True)
class Sent:
    """Spans by name, and the process that sent them."""

    instance: str
    spans: dict[str, Span]

    def parent(self, name: str) -> bytes:
        return self.spans[name].parent_span_id

    def id(self, name: str) -> bytes:
        return self.spans[name].span_id


def next_request(collector: StandInCollector) -> Sent:
    """All that is sent from now on to the end of a request, of whatever trace."""
    spans: dict[str, Span] = {}
    while WHOLE not in spans:
        _, sent = collector.next_call()
        [batch] = sent.resource_spans
        [scope] = batch.scope_spans
        spans |= {span.name: span for span in scope.spans}
    resource = {each.key: each.value.string_value for each in batch.resource.attributes}
    return Sent(resource["service.instance.id"], spans)


async def test_a_request_is_one_trace_from_its_caller_to_its_engine(
    server: Program, http: httpx.AsyncClient, traced_to: StandInCollector
) -> None:
    """Gateway, the router's placing and the engine's steps; not the requests beside it."""
    trace, caller = secrets.token_hex(16), secrets.token_hex(8)
    await complete(http, completion(max_tokens=2), tenant="beside")

    answer = await http.post(
        COMPLETIONS,
        json=completion(max_tokens=8),
        headers={"X-Tenant": "traced", "traceparent": f"00-{trace}-{caller}-01"},
    )
    sent = await asyncio.to_thread(next_request, traced_to)

    parts = {*Phase, EngineState.QUEUED, EngineState.RUNNING}
    assert sent.spans.keys() == {WHOLE, names.GENERATE, *parts}
    assert {span.trace_id.hex() for span in sent.spans.values()} == {trace}
    assert sent.parent(WHOLE).hex() == caller
    assert sent.parent(names.GENERATE) == sent.id(WHOLE)
    assert {sent.parent(part) for part in parts} == {sent.id(names.GENERATE)}
    said = {each.key: each.value for each in sent.spans[names.GENERATE].attributes}
    assert said[names.OUTPUT_TOKENS].int_value == 8
    assert said[names.ENGINE].string_value in (await look(http)).engines
    assert list(sent.spans[Phase.PLACE].events) == []  # the router itself has placed it
    assert sent.instance == answer.headers["x-served-by"]
