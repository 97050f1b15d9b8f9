"""Memory is told apart by process, under names that people know."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from ops.bench.memory import memory_mb, process_name, total_mb

WAIT = "import sys; print('ready', flush=True); sys.stdin.read()"


@contextmanager
def python(*arguments: str) -> Iterator[psutil.Process]:
    """A Python that has started and waits."""
    with subprocess.Popen(
        [sys.executable, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout
        process.stdout.readline()
        yield psutil.Process(process.pid)
        process.kill()


def test_processes_of_one_name_are_added_up() -> None:
    """Two of a kind are one entry of twice the size."""
    with python("-c", WAIT) as one, python("-c", WAIT) as other:
        sizes = memory_mb([one, other])
    assert sizes["python -c"]["processes"] == 2
    assert 10 < sizes["python -c"]["rss"] < 100
    assert sizes["python -c"]["uss"] <= sizes["python -c"]["pss"] <= sizes["python -c"]["rss"]
    assert total_mb(sizes) == sizes["python -c"]


def test_a_process_that_has_ended_is_left_out() -> None:
    """Between listing processes and reading them, some end."""
    with python("-c", WAIT) as process:
        pass
    assert memory_mb([process]) == {}


@pytest.mark.parametrize(
    ("title", "name"),
    [
        (["VLLM::EngineCore"], "VLLM::EngineCore"),
        (["ray::ServeReplica:app:Gateway.handle_request"], "ray::ServeReplica:app:Gateway"),
        (["/usr/bin/python3.11", "-m", "deployments.vllm_engine"], "deployments.vllm_engine"),
        (["/opt/bin/python", "/opt/bin/fastswitch", "serve"], "fastswitch"),
        (["/opt/ray/raylet", "--port=1"], "raylet"),
        (["/usr/sbin/haproxy", "-f", "x.cfg"], "haproxy"),
        (["python", "-u", "/opt/ray/dashboard/agent.py"], "agent.py"),
    ],
)
def test_a_process_goes_by_its_title_its_module_or_its_program(title: list[str], name: str) -> None:
    """The name says which part of the system it is."""

    class Titled(psutil.Process):
        def cmdline(self) -> list[str]:
            return title

    assert process_name(Titled()) == name
