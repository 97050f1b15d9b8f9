"""A Pushgateway whose answers a test steers: it can refuse, be slow, and tells what it was sent."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from queue import Queue
from threading import Event
from typing import Any

from tests.ops.listening import listening

PATIENCE_S = 30.0  # for what takes milliseconds: a shared machine may pause for long


@dataclass(frozen=True)
class Call:
    method: str
    path: str
    body: str


@dataclass
class StandInPushgateway:
    """Every call waits until ``is_open`` is set, then is answered with ``status``."""

    url: str = ""
    status: HTTPStatus = HTTPStatus.OK
    exposition: str = ""
    is_open: Event = field(default_factory=Event)
    calls: Queue[Call] = field(default_factory=Queue)

    def next_call(self) -> Call:
        return self.calls.get(timeout=PATIENCE_S)

    def call_with(self, text: str, method: str = "PUT") -> Call:
        """The next call of this kind with ``text`` in it; fails where none comes."""
        while (call := self.next_call()).method != method or text not in call.body:
            continue
        return call


@contextmanager
def stand_in_pushgateway() -> Iterator[StandInPushgateway]:
    """A listening one, open and willing."""
    gateway = StandInPushgateway()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            gateway.calls.put(Call(self.command, self.path, body))
            gateway.is_open.wait(PATIENCE_S)
            self.send_response(gateway.status)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(gateway.exposition.encode())

        do_PUT = do_DELETE = do_GET = answer  # noqa: N815  (the names http.server looks for)

        def log_message(self, *_: Any) -> None:
            """Tests do not print."""

    with listening(Handler, gateway.is_open) as gateway.url:
        yield gateway
