"""Watching a deployment come up: what it waits for, one line per change; why it failed.

Owns the progress lines on standard error and turning Serve's status into a sentence. Serve and
its replicas do the work; nothing is decided here.
"""

import sys
import threading
import time
import urllib.error
import urllib.request
from types import TracebackType

from app.errors import DeployFailedError

POLL_S = 0.5
SERVED_WITHIN_S = 60.0
# The order in which parts can come up: the later ones wait for the earlier.
PARTS = {"Router": "router", "Engine": "engines", "Gateway": "gateway"}


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
    url = f"http://{host}:{port}/health"
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5) as response:
                if response.status == 200:
                    return
        except (urllib.error.URLError, OSError) as error:
            if time.monotonic() > deadline_s:
                raise DeployFailedError(f"{url} does not answer: {error}") from None
        time.sleep(POLL_S)
