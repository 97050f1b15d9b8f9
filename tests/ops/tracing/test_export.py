"""Spans on their way to a collector that listens, refuses, is away, or is slow."""

import logging
import threading
import time
from collections.abc import Iterator, Sequence
from http import HTTPStatus

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from ops.tracing import export
from ops.tracing.export import SteadyExporter, Tracing
from ops.tracing.plan import TracingPlan
from tests.ops.tracing.recorded import Recorded
from tests.ops.tracing.stand_in_collector import PATIENCE_S, stand_in_collector

OK, FAILURE = SpanExportResult.SUCCESS, SpanExportResult.FAILURE


class Scripted(SpanExporter):
    """Answers a batch with the next of ``answers``; an error is raised."""

    def __init__(self, *answers: SpanExportResult | Exception) -> None:
        self._answers = list(answers)
        self.is_shut = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        answer = self._answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def shutdown(self) -> None:
        self.is_shut = True


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Batches leave at once; and nobody sends any more in the end, or logs that it cannot."""
    monkeypatch.setattr(export, "BATCH_S", 0.01)
    monkeypatch.setattr(export, "CLOSE_S", 0.1)
    before = set(threading.enumerate())
    yield
    for thread in set(threading.enumerate()) - before:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


def make_spans(tracing: Tracing, count: int) -> None:
    for index in range(count):
        tracing.tracer.start_span(f"span {index}").end()


def test_a_collector_gets_the_spans_and_who_sends_them() -> None:
    """As OTLP over HTTP, at the address that was given."""
    with stand_in_collector() as collector:
        tracing = Tracing.to_collector(TracingPlan(collector.url, 1.0), "gateway-7")
        make_spans(tracing, 1)
        path, sent = collector.next_call()
        tracing.close()

    [batch] = sent.resource_spans
    resource = {each.key: each.value.string_value for each in batch.resource.attributes}
    assert path == "/v1/traces"
    assert (resource["service.name"], resource["service.instance.id"]) == (
        "fastswitch",
        "gateway-7",
    )
    assert [span.name for span in batch.scope_spans[0].spans] == ["span 0"]


def test_closing_sends_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the interval between batches."""
    monkeypatch.setattr(export, "BATCH_S", 3600.0)
    monkeypatch.setattr(export, "CLOSE_S", 30.0)
    with stand_in_collector() as collector:
        tracing = Tracing.to_collector(TracingPlan(collector.url, 1.0), "gateway-7")
        make_spans(tracing, 3)
        tracing.close()
        _, sent = collector.next_call()

    assert len(sent.resource_spans[0].scope_spans[0].spans) == 3


def test_a_collector_that_refuses_costs_one_line_of_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """However many batches it refuses; the SDK says nothing of its own."""
    with stand_in_collector() as collector:
        collector.status = HTTPStatus.FORBIDDEN
        tracing = Tracing.to_collector(TracingPlan(collector.url, 1.0), "gateway-7")
        for _ in range(3):
            make_spans(tracing, 1)
            collector.next_call()
        tracing.close()

    assert caplog.messages == [f"{collector.url} takes no traces: they are lost until it does"]


def test_a_collector_that_hangs_holds_up_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spans are made at their usual pace, the queue stays bounded, and closing has its time."""
    monkeypatch.setattr(export, "MAX_QUEUED_SPANS", 600)
    with stand_in_collector() as collector:
        collector.is_open.clear()
        tracing = Tracing.to_collector(TracingPlan(collector.url, 1.0), "gateway-7")
        make_spans(tracing, 1)
        collector.next_call()  # the sender now hangs in it
        begin_s = time.monotonic()
        make_spans(tracing, 5000)
        tracing.close()
        took_s = time.monotonic() - begin_s
        collector.is_open.set()

    assert took_s < export.SEND_S


def test_an_outage_is_said_once_and_its_end_once(caplog: pytest.LogCaptureFixture) -> None:
    """Refused or raised alike; the next outage is another."""
    caplog.set_level(logging.WARNING)
    away = OSError("away")
    answers: list[SpanExportResult | Exception] = [OK, FAILURE, away, FAILURE, OK, OK, away]
    exporter = SteadyExporter(Scripted(*answers), "collector")
    results = [exporter.export([]) for _ in answers]

    lost = "collector takes no traces: they are lost until it does"
    assert results == [OK, FAILURE, FAILURE, FAILURE, OK, OK, FAILURE]
    assert caplog.messages == [lost, "collector takes traces again", lost]


def test_closing_reaches_the_exporter() -> None:
    """It may be waiting for its next try."""
    inner = Scripted()
    SteadyExporter(inner, "collector").shutdown()
    assert inner.is_shut


@pytest.mark.parametrize(("share", "num_spans"), [(0.0, 0), (1.0, 50)])
def test_a_share_of_the_requests_is_traced(share: float, num_spans: int) -> None:
    """None of them, or all."""
    recorded = Recorded(share)
    make_spans(recorded.tracing, 50)
    assert len(recorded.spans) == num_spans
