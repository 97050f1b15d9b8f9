"""`fastswitch bench` ends what it has started, however it is ended itself."""

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


def test_a_benchmark_that_is_terminated_ends_its_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with Ctrl-C: `timeout` and supervisors send SIGTERM, which by itself cleans nothing up."""
    interrupted = Interrupted()
    monkeypatch.setattr(bench.Bench, "load", lambda _: interrupted)
    with pytest.raises(KeyboardInterrupt):
        bench.run(Namespace(bench="serve", seed=0, json=False))
    assert not interrupted.is_server_running
