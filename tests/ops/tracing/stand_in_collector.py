"""A collector whose answers a test steers: it takes OTLP over HTTP, refuses, or is slow."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from queue import Queue
from threading import Event
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.ops.listening import listening

PATIENCE_S = 30.0  # for what takes milliseconds: a shared machine may pause for long


@dataclass
class StandInCollector:
    """Every call waits until ``is_open`` is set, then is answered with ``status``."""

    url: str = ""
    status: HTTPStatus = HTTPStatus.OK
    is_open: Event = field(default_factory=Event)
    calls: Queue[tuple[str, ExportTraceServiceRequest]] = field(default_factory=Queue)

    def next_call(self) -> tuple[str, ExportTraceServiceRequest]:
        """The path and what was sent there."""
        return self.calls.get(timeout=PATIENCE_S)


@contextmanager
def stand_in_collector() -> Iterator[StandInCollector]:
    """A listening one, open and willing."""
    collector = StandInCollector()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            collector.calls.put((self.path, ExportTraceServiceRequest.FromString(body)))
            collector.is_open.wait(PATIENCE_S)
            self.send_response(collector.status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            """Tests do not print."""

    with listening(Handler, collector.is_open) as url:
        collector.url = f"{url}/v1/traces"
        yield collector
