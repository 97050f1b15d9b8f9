"""`fastswitch bench` tells whether limits held, and ends what it has started, however it ends."""

import json
import signal
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator

import pytest
from rich.table import Table

from app.cli import bench
from ops.bench.result import BenchResult


@pytest.fixture(autouse=True)
def _sigterm_as_before() -> Iterator[None]:
    handler = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, handler)


class Judged:
    """A benchmark that has measured already."""

    EXAMPLE = "fastswitch bench scenarios"

    def __init__(self, result: BenchResult) -> None:
        self._result = result

    def add_arguments(self, parser: ArgumentParser) -> None: ...

    def run(self, options: Namespace) -> BenchResult:
        return self._result


class Interrupted:
    """A benchmark that is told to end while its server runs."""

    EXAMPLE = "fastswitch bench serve"

    def __init__(self) -> None:
        self.is_server_running = False

    def add_arguments(self, parser: ArgumentParser) -> None: ...

    def run(self, options: Namespace) -> BenchResult:
        self.is_server_running = True
        try:
            signal.raise_signal(signal.SIGTERM)
        finally:
            self.is_server_running = False
        return BenchResult({}, Table())


@pytest.mark.parametrize(
    ("result", "status"),
    [
        (BenchResult({"numbers": 1}, Table()), 0),
        (BenchResult({"passed": True}, Table(), has_passed=True), 0),
        (BenchResult({"passed": False}, Table(), has_passed=False), 1),
    ],
    ids=["without limits", "all hold", "one does not"],
)
def test_the_exit_status_says_whether_the_limits_held(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    result: BenchResult,
    status: int,
) -> None:
    """A script can go by it; what was measured is printed all the same."""
    monkeypatch.setattr(bench.Bench, "load", lambda _: Judged(result))
    assert bench.run(Namespace(bench="scenarios", seed=0, json=True)) == status
    last_line = capsys.readouterr().out.splitlines()[-1]
    assert json.loads(last_line).items() >= result.keys.items()


def test_a_benchmark_that_is_terminated_ends_its_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with Ctrl-C: `timeout` and supervisors send SIGTERM, which by itself cleans nothing up."""
    interrupted = Interrupted()
    monkeypatch.setattr(bench.Bench, "load", lambda _: interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.run(Namespace(bench="serve", seed=0, json=False))
    assert not interrupted.is_server_running
