"""A server under test is started, waited for, and leaves nothing behind."""

import sys

import psutil
import pytest

from ops.bench.errors import RequestFailedError, ServerStartError
from ops.bench.server import PORT, ServerCommand, running

# Answers as a model server does, and has a child that would outlive it.
SERVER = """
import json, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"data": [{"id": "m", "max_model_len": 99}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def command(script: str) -> ServerCommand:
    return ServerCommand("stand-in", (sys.executable, "-c", script, PORT), {"MARK": "1"})


def test_a_server_is_up_inside_and_gone_after() -> None:
    """Inside, it serves what it says; after, neither it nor its children run."""
    with running(command(SERVER)) as server:
        assert (server.model, server.max_model_len) == ("m", 99)
        processes = server.processes()
        assert len(processes) == 2
        assert processes[0].environ()["MARK"] == "1"
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert alive == []


def test_a_server_that_ends_at_once_is_quoted() -> None:
    """The last thing it said is the reason."""
    script = "import sys; print('no such model'); sys.exit(3)"
    with (
        pytest.raises(ServerStartError, match="stand-in server did not start: no such model"),
        running(command(script)),
    ):
        pass


def test_a_server_stops_when_the_measurement_fails() -> None:
    """An error inside ends the server all the same."""
    processes: list[psutil.Process] = []

    def fail() -> None:
        with running(command(SERVER)) as server:
            processes.extend(server.processes())
            raise RequestFailedError("broke off")

    with pytest.raises(RequestFailedError):
        fail()
    _, alive = psutil.wait_procs(processes, timeout=5)
    assert alive == []
