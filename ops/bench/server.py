"""A server under test: started as users start it, asked what it serves, stopped whole.

Owns the process and its children; knows nothing of what is measured.
"""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from time import monotonic, sleep
from typing import IO

import psutil

from app.ports import free_port
from ops.bench.errors import ServerStartError

HOST = "127.0.0.1"
PORT = "{port}"
START_TIMEOUT_S = 600.0  # a first start compiles kernels, on a GPU for minutes
STOP_TIMEOUT_S = 60.0
POLL_S = 0.2


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """How a server is started; ``PORT`` in ``argv`` stands for the port it is to listen on."""

    name: str
    argv: tuple[str, ...]
    environment: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Server:
    """A server that takes requests."""

    name: str
    port: int
    model: str
    max_model_len: int
    process: psutil.Process

    def processes(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]


@contextlib.contextmanager
def running(command: ServerCommand) -> Iterator[Server]:
    """Start a server and wait until it takes requests; on leaving, all its processes have ended.

    Raises:
        ServerStartError: it ended, or was not ready in time.
    """
    port = free_port(HOST)
    argv = [argument.replace(PORT, str(port)) for argument in command.argv]
    environment = {**os.environ, **command.environment}
    with tempfile.TemporaryFile() as log:
        # Its own group: Ctrl-C is this process's to hand on. Not a session of its own: where Linux
        # shares the processor by session (autogroup), clients would stand still for seconds.
        process = subprocess.Popen(argv, env=environment, stdout=log, stderr=log, process_group=0)
        try:
            _wait_until_ready(command.name, process, port, log)
            model, max_model_len = _served_model(port)
            yield Server(command.name, port, model, max_model_len, psutil.Process(process.pid))
        finally:
            _stop(process)


def _wait_until_ready(
    name: str, process: subprocess.Popen[bytes], port: int, log: IO[bytes]
) -> None:
    deadline_s = monotonic() + START_TIMEOUT_S
    while not _is_healthy(port):
        if process.poll() is not None:
            raise ServerStartError(name, _last_words(log))
        if monotonic() > deadline_s:
            raise ServerStartError(name, f"not ready after {START_TIMEOUT_S:g} s")
        sleep(POLL_S)


def _is_healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://{HOST}:{port}/health", timeout=5) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _served_model(port: int) -> tuple[str, int]:
    with urllib.request.urlopen(f"http://{HOST}:{port}/v1/models", timeout=30) as response:
        card = json.load(response)["data"][0]
    return card["id"], card["max_model_len"]


def _last_words(log: IO[bytes]) -> str:
    log.seek(0)
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1] if lines else "it said nothing"


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the server to end and insist on it, with everything it has started."""
    started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    _, alive = psutil.wait_procs(started, timeout=POLL_S)
    for child in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
