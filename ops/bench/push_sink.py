"""Something in a process of its own that takes pushes and forgets them.

`python -m ops.bench.push_sink` prints its port and serves until it is terminated.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

HOST = "127.0.0.1"


@contextmanager
def push_sink() -> Iterator[str]:
    """The address of a running one."""
    process = subprocess.Popen(
        [sys.executable, "-m", "ops.bench.push_sink"], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        yield f"http://{HOST}:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


class _Handler(BaseHTTPRequestHandler):
    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Nobody reads it."""


if __name__ == "__main__":
    server = HTTPServer((HOST, 0), _Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
