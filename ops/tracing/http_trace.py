"""The root span: one HTTP request, from the moment it is let in to the end of its answer.

Owns the span, and that it goes on from the caller's ``traceparent`` (W3C Trace Context). Which
requests have one is the edge's to say; what happens inside is the sequences' (``sequence_trace``).
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus

from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from ops.tracing import names

_propagator = TraceContextTextMapPropagator()
# In the request's headers; who goes on from them takes them out.
TRACE_HEADERS = frozenset(_propagator.fields)


class HttpTrace:
    """What is said of the answer."""

    __slots__ = ("_span",)

    def __init__(self, span: Span) -> None:
        self._span = span

    def answer(self, status: int) -> None:
        """The answer has begun, with this status."""
        self._span.set_attribute(names.HTTP_STATUS, status)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self.fail(str(status))

    def fail(self, why: str) -> None:
        self._span.set_attribute(names.ERROR_TYPE, why)
        self._span.set_status(Status(StatusCode.ERROR))


@contextmanager
def http_request(
    tracer: Tracer,
    route: str,
    headers: Mapping[str, str],
    attributes: Mapping[str, str],
) -> Iterator[HttpTrace]:
    """Within it runs a POST to ``route``; all that is traced there belongs to its span."""
    with tracer.start_as_current_span(
        f"POST {route}",
        _propagator.extract(headers),
        SpanKind.SERVER,
        {names.HTTP_METHOD: "POST", names.HTTP_ROUTE: route, **attributes},
        # What an error says may quote the prompt.
        record_exception=False,
        set_status_on_exception=False,
    ) as span:
        request = HttpTrace(span)
        try:
            yield request
        except Exception as error:
            request.fail(type(error).__name__)
            raise
