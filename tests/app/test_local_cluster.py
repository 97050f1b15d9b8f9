"""The local cluster's environment, its HAProxy, and the end of what it started; Ray itself not."""

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from app import local_cluster
from app.ports import free_port

HAPROXY = """
global
  stats socket {socket}
defaults
  mode http
  timeout connect 1s
  timeout client 1s
  timeout server 1s
frontend prometheus
  bind :{metrics}
frontend http_frontend
  bind 0.0.0.0:{http}
listen stats
  bind *:{stats}
  stats enable
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    return local_cluster._environment(tmp_path)


def test_two_clusters_on_one_machine_share_nothing(tmp_path: Path) -> None:
    """Neither files nor ports: what they have in common is switched on or off, or is a time."""
    one, other = (local_cluster._environment(make(tmp_path / name)) for name in ("one", "other"))

    shared = {name for name in one if one[name] == other[name]}
    assert all(one[name] in ("0", "1") or name.endswith("_S") for name in shared)


def test_all_files_lie_in_the_clusters_folder(tmp_path: Path, environment: dict[str, str]) -> None:
    """Which is removed in the end."""
    paths = [value for value in environment.values() if "/" in value]
    assert paths
    assert all(Path(path).is_relative_to(tmp_path) for path in paths)


@pytest.mark.skipif(shutil.which("sed") is None, reason="the script needs sed")
def test_haproxy_shows_its_statistics_to_this_machine_only(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    """Ray would open them to every network; where people chose to serve is left as it is."""
    stats, metrics = (
        environment[f"RAY_SERVE_HAPROXY_{name}_PORT"] for name in ("STATS", "METRICS")
    )
    http, config = free_port("127.0.0.1"), tmp_path / "haproxy.cfg"
    socket = tmp_path / "admin.sock"
    config.write_text(HAPROXY.format(socket=socket, metrics=metrics, http=http, stats=stats))
    check = [environment["RAY_SERVE_HAPROXY_BINARY_PATH"], "-c", "-f", str(config)]
    subprocess.run(check, check=True)

    lines = config.read_text().splitlines()
    binds = [line.split()[1] for line in lines if line.startswith("  bind")]
    assert binds == [f"127.0.0.1:{metrics}", f"0.0.0.0:{http}", f"127.0.0.1:{stats}"]


def test_haproxy_is_called_with_everything_it_is_given(environment: dict[str, str]) -> None:
    """Its version can be asked through the script too."""
    script = environment["RAY_SERVE_HAPROXY_BINARY_PATH"]
    asked = subprocess.run([script, "-v"], check=True, capture_output=True, text=True)
    assert "HAProxy version" in asked.stdout


@pytest.fixture
def processes(tmp_path: Path) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Three that run: one ends when asked, one will not, one is somebody else's."""
    wait = "import signal, sys\nprint('up', flush=True)\nsignal.pause()"
    stay = f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{wait}"
    programs = {"docile": wait, "stubborn": stay, "strange": wait}
    running = {
        name: subprocess.Popen(
            [sys.executable, "-c", program, *mark],
            stdout=subprocess.PIPE,
            text=True,
        )
        for name, program in programs.items()
        for mark in [[] if name == "strange" else [str(tmp_path / "haproxy.cfg")]]
    }
    for process in running.values():
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
    yield running
    for process in running.values():
        process.kill()
        process.communicate()


def test_what_belongs_to_the_cluster_is_found_and_ended(
    tmp_path: Path,
    processes: dict[str, subprocess.Popen[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By its folder; what will not end is killed, and nobody else's process is touched."""
    monkeypatch.setattr(local_cluster, "END_S", 0.2)
    found = local_cluster._haproxies(tmp_path)
    assert {each.pid for each in found} == {processes[name].pid for name in ("docile", "stubborn")}

    local_cluster._end(found)
    _, alive = psutil.wait_procs(found, timeout=30)  # a killed process takes a moment
    assert alive == []
    assert processes["strange"].poll() is None


def test_ending_what_has_ended_is_nothing(processes: dict[str, subprocess.Popen[str]]) -> None:
    """A process may go by itself meanwhile."""
    gone = psutil.Process(processes["docile"].pid)
    processes["docile"].kill()
    processes["docile"].wait()
    local_cluster._end([gone])


def make(folder: Path) -> Path:
    folder.mkdir()
    return folder
