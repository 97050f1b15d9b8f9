"""The real Prometheus, Pushgateway and promtool, on loopback; tests that need them skip without.

They are Debian's packages ``prometheus`` and ``prometheus-pushgateway``.
"""

import asyncio
import math
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, time
from typing import Any

import httpx
import pytest
import yaml

from app.ports import free_port
from tests.cluster.program import wait_until

HOST = "127.0.0.1"
PATIENCE_S = 60.0
POLL_S = 0.1
SCRAPE_S = 1

PROGRAMS = {
    name: shutil.which(name) or "" for name in ("prometheus", "promtool", "prometheus-pushgateway")
}
_missing = [name for name, path in PROGRAMS.items() if not path]
needs_prometheus = pytest.mark.skipif(
    bool(_missing),
    reason=f"{', '.join(_missing)} missing: apt-get install prometheus prometheus-pushgateway",
)


def promtool(*arguments: str | Path, stdin: str | None = None) -> str:
    """What promtool says; fails with it where promtool is not content."""
    done = subprocess.run(
        [PROGRAMS["promtool"], *map(str, arguments)],
        input=stdin,
        capture_output=True,
        text=True,
        check=False,
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    return said


async def soon(look: Callable[[], None], what: str) -> None:
    """Return once ``look`` asserts nothing wrong any more; fails with what it said last."""
    deadline_s = monotonic() + PATIENCE_S
    while (problem := _problem(look)) is not None:
        assert monotonic() < deadline_s, f"not within {PATIENCE_S:g} s: {what}: {problem}"
        await asyncio.sleep(POLL_S)


def _problem(look: Callable[[], None]) -> str | None:
    try:
        look()
    except (AssertionError, httpx.TransportError) as error:
        return str(error) or repr(error)
    return None


@dataclass(frozen=True)
class Series:
    labels: dict[str, str]
    values: list[float]

    @property
    def last(self) -> float:
        return self.values[-1]


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    url: str

    def get(self, path: str, **parameters: Any) -> Any:
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=parameters)
        body = answer.json()
        assert body["status"] == "success", body
        return body["data"]

    def curve(self, query: str, *, back_s: float = 5.0) -> list[Series]:
        """The query over the last seconds as Grafana asks for it, where it has numbers."""
        series = [
            Series(each.labels, [value for value in each.values if math.isfinite(value)])
            for each in self.points(query, back_s=back_s)
        ]
        return [each for each in series if each.values]

    def points(self, query: str, *, back_s: float = 5.0) -> list[Series]:
        """The same, with a quantile of nothing as the NaN that it is."""
        now_s = time()
        found = self.get("query_range", query=query, start=now_s - back_s, end=now_s, step=1)
        assert found["resultType"] == "matrix"
        return [
            Series(each["metric"], [float(value) for _, value in each["values"]])
            for each in found["result"]
        ]

    def now(self, query: str) -> list[Series]:
        found = self.get("query", query=query)
        assert found["resultType"] == "vector"
        return [Series(each["metric"], [float(each["value"][1])]) for each in found["result"]]


@contextmanager
def prometheus(
    folder: Path, targets: list[str], pushgateway: str, rules: Path
) -> Iterator[Prometheus]:
    """A server that scrapes ``targets`` and the Pushgateway every second."""
    config = {
        "global": {"scrape_interval": f"{SCRAPE_S}s", "evaluation_interval": f"{SCRAPE_S}s"},
        "rule_files": [str(rules)],
        "scrape_configs": [
            {"job_name": "fastswitch", "static_configs": [{"targets": targets}]},
            {
                "job_name": "pushgateway",
                "honor_labels": True,
                "static_configs": [{"targets": [pushgateway.removeprefix("http://")]}],
            },
        ],
    }
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    address = f"{HOST}:{free_port(HOST)}"
    arguments = [
        f"--config.file={path}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with _running("prometheus", arguments, f"http://{address}/-/ready"):
        yield Prometheus(f"http://{address}")


@contextmanager
def pushgateway(address: str = "") -> Iterator[str]:
    """A running Pushgateway's URL; it listens on loopback, unless HOST:PORT says otherwise."""
    address = address or f"{HOST}:{free_port(HOST)}"
    # Debian's keeps what it has in a file, for the next one to begin with.
    arguments = [f"--web.listen-address={address}", "--persistence.file="]
    with _running("prometheus-pushgateway", arguments, f"http://{address}/-/ready"):
        yield f"http://{address}"


@contextmanager
def _running(program: str, arguments: list[str], ready_url: str) -> Iterator[None]:
    process = subprocess.Popen(
        [PROGRAMS[program], *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        wait_until(
            lambda: _is_ready(process, ready_url), f"{program} is ready", within_s=PATIENCE_S
        )
        yield
    finally:
        process.kill()  # they have nothing to keep
        process.wait()


def _is_ready(process: subprocess.Popen[bytes], url: str) -> bool:
    assert process.poll() is None, f"{process.args!r} ended with status {process.returncode}"
    return _problem(lambda: _assert_answers(url)) is None


def _assert_answers(url: str) -> None:
    assert httpx.get(url).status_code == 200
