"""Spans kept in memory, as a test looks at them."""

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from ops.tracing.export import Tracing, new_provider


class Recorded:
    """Tracing whose spans go nowhere; those that have ended are here."""

    def __init__(self, sample_share: float = 1.0) -> None:
        self._exporter = InMemorySpanExporter()
        provider = new_provider(sample_share, "gateway-test")
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self.tracing = Tracing(provider, self._exporter)
        self.tracer = self.tracing.tracer

    @property
    def spans(self) -> list[ReadableSpan]:
        """Those that have ended, by when they began."""
        return sorted(self._exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> ReadableSpan:
        [span] = self.named(name)
        return span


def lasted_s(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


def is_child(span: ReadableSpan, parent: ReadableSpan) -> bool:
    assert parent.context is not None
    return span.parent is not None and span.parent.span_id == parent.context.span_id
