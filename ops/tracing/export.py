"""Spans on their way out: sampled, in batches, over HTTP, from a thread of their own.

Owns that a collector which is away, slow or says no costs no request anything and the log one
line: spans wait in a bounded queue, where new ones push out the oldest, and a batch has its time
and no more. All of it is OpenTelemetry's SDK, except who speaks of failures.
"""

import logging
import threading
from collections.abc import Sequence
from typing import Self

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.sdk.trace.sampling import ParentBased, TraceIdRatioBased
from opentelemetry.trace import Tracer

from ops.tracing.plan import TracingPlan

logger = logging.getLogger("ray.serve")

SERVICE = "fastswitch"
# Shorter than Serve waits before it ends a gateway that has answered its last request.
BATCH_S = 1.0
BATCH_SPANS = 512
MAX_QUEUED_SPANS = 8192  # about a thousand requests
SEND_S = 5.0
CLOSE_S = 2.0


class Tracing:
    """Where spans are made, and where they go; not OpenTelemetry's global one, which is vLLM's."""

    def __init__(self, provider: TracerProvider, exporter: SpanExporter) -> None:
        self._provider, self._exporter = provider, exporter
        self.tracer: Tracer = provider.get_tracer(SERVICE)

    @classmethod
    def to_collector(cls, plan: TracingPlan, instance: str) -> Self:
        """Spans of ``instance`` go where the plan says, until it is closed."""
        _quieten_sdk()
        exporter = SteadyExporter(OTLPSpanExporter(plan.otlp_url, timeout=SEND_S), plan.otlp_url)
        provider = new_provider(plan.sample_share, instance)
        provider.add_span_processor(
            BatchSpanProcessor(
                exporter,
                max_queue_size=MAX_QUEUED_SPANS,
                schedule_delay_millis=BATCH_S * 1e3,
                max_export_batch_size=BATCH_SPANS,
            )
        )
        return cls(provider, exporter)

    def close(self) -> None:
        """Send what is left, if that takes no longer than ``CLOSE_S``."""
        closing = threading.Thread(target=self._provider.shutdown, daemon=True)
        closing.start()
        closing.join(CLOSE_S)
        self._exporter.shutdown()  # ends its tries, should it still be at it


class SteadyExporter(SpanExporter):
    """Passes batches on. That it cannot is said once, and once that it can again."""

    def __init__(self, exporter: SpanExporter, where: str) -> None:
        self._exporter, self._where = exporter, where
        self._is_failing = False

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        try:
            result = self._exporter.export(spans)
        except Exception:  # noqa: BLE001  (whatever it is, spans are not worth more)
            result = SpanExportResult.FAILURE
        has_failed = result is SpanExportResult.FAILURE
        if has_failed and not self._is_failing:
            logger.warning("%s takes no traces: they are lost until it does", self._where)
        if self._is_failing and not has_failed:
            logger.warning("%s takes traces again", self._where)
        self._is_failing = has_failed
        return result

    def shutdown(self) -> None:
        self._exporter.shutdown()


def new_provider(sample_share: float, instance: str) -> TracerProvider:
    """A provider that traces what the caller traces, and a share of what has no such caller."""
    return TracerProvider(
        ParentBased(TraceIdRatioBased(sample_share)),
        Resource.create({"service.name": SERVICE, "service.instance.id": instance}),
        shutdown_on_exit=False,  # it would wait for a collector that is away; see `Tracing.close`
    )


def _quieten_sdk() -> None:
    """The SDK logs every attempt that fails and every span that is pushed out of the queue."""
    for name in ("opentelemetry.sdk", "opentelemetry.exporter"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
