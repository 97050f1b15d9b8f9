"""A service that answers ``GET /v1/fairness`` as the test tells it to."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

Answer = tuple[int, bytes]


@dataclass
class StandInService:
    """What the service was asked, and where."""

    url: str = ""
    paths: list[str] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)


def fairness(**fields: Any) -> Answer:
    """A good answer with these fields."""
    return 200, json.dumps({"policy": "vtc", **fields}).encode()


@contextmanager
def serving(answer: Callable[[int], Answer]) -> Iterator[StandInService]:
    """Answer the n-th request, from 0 on, with status and body ``answer(n)``."""
    seen = StandInService()

    class Handler(BaseHTTPRequestHandler):
        def handle(self) -> None:
            with suppress(ConnectionError):  # who is interrupted leaves without its answer
                super().handle()

        def do_GET(self) -> None:
            status, body = answer(len(seen.paths))
            seen.paths.append(self.path)
            seen.keys.append(self.headers.get("Authorization"))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_args: Any) -> None:
            return

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        seen.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield seen
        finally:
            server.shutdown()
            thread.join()
