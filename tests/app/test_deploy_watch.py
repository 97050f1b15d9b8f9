"""Watching a deployment: what it waits for, why it failed, whether requests get through."""

import itertools
import re
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace
from typing import Any

import pytest
from ray import serve

from app import deploy_watch
from app.deploy_watch import DeployWatcher, reason_in, wait_until_served, watch_while_served
from app.errors import DeployFailedError, ServiceLostError

HOST = "127.0.0.1"
TRACEBACK = """The deployment failed to start 3 times in a row. Error:
ray::ServeReplica:fastswitch:Engine.initialize_and_get_metadata() (pid=7, ip=127.0.0.1)
  File "replica.py", line 1, in initialize
    raise RuntimeError(traceback.format_exc()) from None
RuntimeError: Traceback (most recent call last):
  File "engine_process.py", line 2, in ready
    raise EngineStartError(self.engine_id, status, self._reason())
deployments.errors.EngineStartError: engine engine-1 ended with status 1: the model is too large
"""


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (TRACEBACK, "engine engine-1 ended with status 1: the model is too large"),
        ("ValueError: no", "no"),
        ("Waiting for 2 replicas: none is ready", ""),
        ("Error", ""),
        ("", ""),
    ],
)
def test_the_reason_is_the_last_exception_of_a_message(message: str, reason: str) -> None:
    """Serve's messages hold whole tracebacks; people get the sentence at their end."""
    assert reason_in(message) == reason


class Status:
    """What Serve says of one application, as a test sets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.parts: dict[str, SimpleNamespace] = {}
        self.num_asked = 0
        monkeypatch.setattr(serve, "status", self)
        monkeypatch.setattr(deploy_watch, "POLL_S", 0.002)

    def __call__(self) -> Any:
        self.num_asked += 1
        application = SimpleNamespace(deployments=self.parts)
        return SimpleNamespace(applications={"fastswitch": application})

    def say(self, name: str, message: str = "", **replicas: int) -> None:
        self.parts[name] = SimpleNamespace(replica_states=replicas, message=message)

    def wait_until_asked(self) -> None:
        """Until Serve has been asked since this call, and the answer has been dealt with."""
        seen = self.num_asked
        deadline_s = time.monotonic() + 30
        while self.num_asked < seen + 2:
            assert time.monotonic() < deadline_s
            time.sleep(0.001)


@pytest.fixture
def status(monkeypatch: pytest.MonkeyPatch) -> Status:
    return Status(monkeypatch)


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    """The lines on standard error, without their times."""
    lines = capsys.readouterr().err.splitlines()
    assert all(re.match(r"\[ *\d+\.\d s\] ", line) for line in lines)
    return [line.partition("] ")[2] for line in lines]


def test_each_change_is_told_once(status: Status, capsys: pytest.CaptureFixture[str]) -> None:
    """Which parts are still awaited, and how many of each there are."""
    status.say("Router", STARTING=1)
    status.say("Engine", STARTING=2)
    with DeployWatcher(time.monotonic()):
        status.wait_until_asked()
        status.say("Router", RUNNING=1)
        status.wait_until_asked()
        status.say("Engine", RUNNING=1, STARTING=1)
        status.wait_until_asked()
        status.say("Engine", RUNNING=2)
        status.say("Gateway", STARTING=1)
        status.wait_until_asked()
        status.say("Gateway", RUNNING=1)
        status.wait_until_asked()

    assert told(capsys) == [
        "waiting for router 0/1, engines 0/2",
        "waiting for engines 0/2",
        "waiting for engines 1/2",
        "waiting for gateway 0/1",
    ]


def test_a_failure_is_a_sentence_of_the_part_that_failed(status: Status) -> None:
    """Also where Serve has taken the message back by the time it is asked."""
    watcher = DeployWatcher(time.monotonic())
    with watcher:
        status.say("Engine", TRACEBACK, STARTING=1)
        status.wait_until_asked()
        status.say("Engine", "trying again", STARTING=1)
        status.wait_until_asked()
    assert watcher.failure() == reason_in(TRACEBACK)


def test_a_failure_nobody_explains_is_still_a_sentence(status: Status) -> None:
    """Where no part says why."""
    assert status.parts == {}
    assert DeployWatcher(0.0).failure() == "Serve could not deploy the application"


def test_a_serve_that_is_not_up_yet_is_asked_again(
    status: Status, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its errors are no failure of the deployment."""
    calls = itertools.count()

    def starting() -> Any:
        if next(calls) < 3:
            raise RuntimeError("Serve is not running")
        return status()

    monkeypatch.setattr(serve, "status", starting)
    with DeployWatcher(time.monotonic()):
        status.wait_until_asked()


class Health:
    """A server whose ``/health`` answers as a test says; past the last answer, the last again."""

    def __init__(self, *answers: HTTPStatus | bytes) -> None:
        self.answers = list(answers)
        self.num_asked = 0

    def answer(self) -> HTTPStatus | bytes:
        self.num_asked += 1
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


@contextmanager
def served(health: Health) -> Iterator[int]:
    """The port on which ``health`` answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/health"
            answer = health.answer()
            if isinstance(answer, bytes):
                self.wfile.write(answer)
                return
            self.send_response(answer)
            self.end_headers()
            self.wfile.write(b'{"reason": "no engine is up"}')

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer((HOST, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deploy_watch, "POLL_S", 0.002)
    monkeypatch.setattr(deploy_watch, "WATCH_S", 0.002)


def test_waiting_ends_when_requests_get_through() -> None:
    """A gateway that has no engine yet is waited for."""
    health = Health(HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.OK)
    with served(health) as port:
        wait_until_served(HOST, port)
    assert health.num_asked == 3


def test_answers_that_are_no_http_are_waited_out() -> None:
    """A proxy that is just starting may close or garble a connection."""
    health = Health(b"", b"what?\r\n\r\n", HTTPStatus.OK)
    with served(health) as port:
        wait_until_served(HOST, port)
    assert health.num_asked == 3


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It could not reach this machine's own address."""
    monkeypatch.setattr(deploy_watch, "SERVED_WITHIN_S", 0.0)
    monkeypatch.setattr(urllib.request, "_opener", None)  # kept from an earlier environment
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, f"http://{HOST}:1")
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    with served(Health(HTTPStatus.OK)) as port:
        wait_until_served(HOST, port)


def test_waiting_does_not_last_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what the gateway says, or that nobody answers."""
    monkeypatch.setattr(deploy_watch, "SERVED_WITHIN_S", 0.05)
    with (
        served(Health(HTTPStatus.SERVICE_UNAVAILABLE)) as port,
        pytest.raises(DeployFailedError, match=r"/health answers 503: .*no engine is up"),
    ):
        wait_until_served(HOST, port)
    with pytest.raises(DeployFailedError, match="/health does not answer"):
        wait_until_served(HOST, port)


def test_losing_and_regaining_service_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once each; what is not mended in time ends the watch."""
    monkeypatch.setattr(deploy_watch, "MENDED_WITHIN_S", 0.05)
    lost, well = HTTPStatus.SERVICE_UNAVAILABLE, HTTPStatus.OK
    with (
        served(Health(well, lost, lost, well, well, lost)) as port,
        pytest.raises(ServiceLostError, match="no engine is up"),
    ):
        watch_while_served(HOST, port, time.monotonic())

    lines = told(capsys)
    assert [line.partition(":")[0] for line in lines] == [
        "not serving",
        "serving again",
        "not serving",
    ]
