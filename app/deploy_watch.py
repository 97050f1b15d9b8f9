"""Watching a deployment come up: what it waits for, one line per change; why it failed.

Owns the progress lines on standard error and turning Serve's status into a sentence. Serve and
its replicas do the work; nothing is decided here.
"""

import http.client
import sys
import threading
import time
import urllib.error
import urllib.request
from types import TracebackType
from typing import NoReturn

from app.errors import DeployFailedError, ServiceLostError

POLL_S = 0.5
SERVED_WITHIN_S = 60.0
WATCH_S = 2.0
HEALTH_REPLY_S = 10.0
MENDED_WITHIN_S = 300.0  # a replica that Serve starts anew loads its model first
# The order in which parts can come up: the later ones wait for the earlier.
PARTS = {"Router": "router", "Engine": "engines", "Gateway": "gateway"}

# A proxy of the environment knows nothing of this machine's own addresses.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class DeployWatcher:
    """Tells what the application waits for, from a thread of its own, while in its ``with``."""

    def __init__(self, started_s: float) -> None:
        self._started_s = started_s
        self._last_line = ""
        self._problem = ""
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "DeployWatcher":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join(timeout=5)

    def failure(self) -> str:
        """Why it failed, as one sentence of the part that did."""
        self._look()
        return self._problem or "Serve could not deploy the application"

    def _watch(self) -> None:
        while not self._ended.wait(POLL_S):
            self._look()

    def _look(self) -> None:
        from ray import serve

        try:
            applications = serve.status().applications
        except Exception:  # noqa: BLE001  (Serve itself is still starting)
            return
        for application in applications.values():
            states = []
            for name, label in PARTS.items():
                deployment = application.deployments.get(name)
                if deployment is None:
                    continue
                running = deployment.replica_states.get("RUNNING", 0)
                wanted = sum(deployment.replica_states.values())
                if running < wanted or not wanted:
                    states.append(f"{label} {running}/{wanted}")
                self._problem = reason_in(deployment.message) or self._problem
            if states:
                self._say("waiting for " + ", ".join(states))

    def _say(self, line: str) -> None:
        if line != self._last_line:
            self._last_line = line
            tell(line, time.monotonic() - self._started_s)


def tell(line: str, elapsed_s: float) -> None:
    """One line of progress for people."""
    print(f"[{elapsed_s:5.1f} s] {line}", file=sys.stderr, flush=True)


def reason_in(message: str) -> str:
    """The last exception named in a status message of Serve's, without its traceback."""
    for line in reversed(message.splitlines()):
        kind, colon, text = line.strip().partition(": ")
        if colon and kind.replace(".", "").isidentifier() and kind.endswith(("Error", "Exception")):
            return text
    return ""


def wait_until_served(host: str, port: int) -> None:
    """Return once HTTP requests get through to the engines.

    Raises:
        DeployFailedError: they do not, though every part says it runs.
    """
    deadline_s = time.monotonic() + SERVED_WITHIN_S
    while problem := _health_problem(host, port):
        if time.monotonic() > deadline_s:
            raise DeployFailedError(problem)
        time.sleep(POLL_S)


def watch_while_served(host: str, port: int, started_s: float) -> NoReturn:
    """Tell when requests no longer get through and when they do again.

    Raises:
        ServiceLostError: Ray and Serve have not mended it in time.
    """
    lost_s: float | None = None
    while True:
        time.sleep(WATCH_S)
        problem = _health_problem(host, port)
        now = time.monotonic()
        if problem and lost_s is None:
            lost_s = now
            tell(f"not serving: {problem}", now - started_s)
        elif problem and lost_s is not None and now - lost_s > MENDED_WITHIN_S:
            raise ServiceLostError(problem, now - lost_s)
        elif not problem and lost_s is not None:
            lost_s = None
            tell("serving again", now - started_s)


def _health_problem(host: str, port: int) -> str:
    """Why ``/health`` is not well; empty while it is."""
    url = f"http://{host}:{port}/health"
    try:
        with _direct.open(url, timeout=HEALTH_REPLY_S):
            return ""
    except urllib.error.HTTPError as error:
        with error:
            return f"{url} answers {error.code}: {error.read(500).decode(errors='replace')}"
    except (OSError, http.client.HTTPException) as error:
        return f"{url} does not answer: {error}"
