"""The program under test: ``fastswitch serve`` in a process of its own, as a user starts it.

Owns its start, how it looks from outside (its processes, its log) and its end, of which it asserts
that it is quick and leaves nothing behind. What is asked of it over HTTP is the tests' business.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, sleep

import psutil

from app.ports import free_port, is_port_free
from kv.node_pools import application_folder, life_of

HOST = "127.0.0.1"
FASTSWITCH = Path(sys.executable).with_name("fastswitch")
MODEL = "tiny"

# What its processes are called, from the beginning of their command lines or within.
ROUTER = "ray::ServeReplica:fastswitch:Router"
GATEWAY = "ray::ServeReplica:fastswitch:Gateway"
ENGINE_REPLICA = "ray::ServeReplica:fastswitch:Engine"
ENGINE_CORE = "deployments.vllm_engine"
HAPROXY = "bin/haproxy"

START_WITHIN_S = 300.0
END_WITHIN_S = 20.0
INTERRUPTED_STATUS = 130
POLL_S = 0.05
# Every process that the program starts inherits it, however far down.
MARK = "FASTSWITCH_TEST_PROGRAM"


@dataclass(frozen=True, slots=True)
class Program:
    """A server that takes requests."""

    process: "subprocess.Popen[bytes]"
    port: int
    log: Path

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}"

    @property
    def said(self) -> str:
        """All that it has printed so far."""
        return self.log.read_text(errors="replace")

    def processes(self) -> list[psutil.Process]:
        """The program and everything it has started, now."""
        main = psutil.Process(self.process.pid)
        return [main, *main.children(recursive=True)]

    def parts(self, name: str) -> list[psutil.Process]:
        """Its processes of one kind: ``ROUTER``, ``ENGINE_CORE`` ..."""
        return [process for process in self.processes() if name in title_of(process)]

    def part(self, name: str) -> psutil.Process:
        """Its one process of this kind."""
        [process] = self.parts(name)
        return process


@contextmanager
def running(arguments: Sequence[str], log: Path) -> Iterator[Program]:
    """Start the program, wait until it is ready; on leaving, interrupt it and see that it ends."""
    port = free_port(HOST)
    with log.open("wb") as output:
        process = subprocess.Popen(
            [FASTSWITCH, "serve", "--port", str(port), *arguments],
            stdout=output,
            stderr=output,
            env={**os.environ, MARK: str(port)},
            process_group=0,
        )
    program = Program(process, port, log)
    try:
        wait_until(lambda: _is_ready(program), "the program is ready", within_s=START_WITHIN_S)
        yield program
        _interrupt(program)
    finally:
        _kill_leftovers(program)


def wait_until(condition: Callable[[], bool], what: str, *, within_s: float) -> None:
    """Return once ``condition`` holds; fail when it has not within its time."""
    deadline_s = monotonic() + within_s
    while not condition():
        assert monotonic() < deadline_s, f"not within {within_s:g} s: {what}"
        sleep(POLL_S)


def stretched(seconds: float) -> float:
    """What takes ``seconds`` on an idle machine may take here: other work may share the cores."""
    return seconds * max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def marked(port: int) -> list[psutil.Process]:
    """Processes that carry the mark of the program on ``port``, whoever their parent is now."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get(MARK) == str(port):
                found.append(process)
    return found


def _is_ready(program: Program) -> bool:
    assert program.process.poll() is None, f"it ended before it was ready:\n{program.said}"
    return f"ready  {program.url}" in program.said


def _interrupt(program: Program) -> None:
    """Ctrl-C: the signal goes to the whole foreground group, as a terminal sends it."""
    started = program.processes()
    run_folders = {_run_folder(process) for process in program.parts(HAPROXY)}
    run_folders |= _shared_memory_of(started)
    os.killpg(program.process.pid, signal.SIGINT)
    within_s = stretched(END_WITHIN_S)
    assert program.process.wait(within_s) == INTERRUPTED_STATUS
    _, alive = psutil.wait_procs(started, timeout=1)
    left = {*alive, *marked(program.port)}
    assert not left, f"still running after the end: {[title_of(process) for process in left]}"
    assert is_port_free(HOST, program.port)
    assert [folder for folder in run_folders if folder.exists()] == []
    assert "Traceback" not in program.said, program.said


def _run_folder(haproxy: psutil.Process) -> Path:
    """The folder that the program has made for its HAProxy; Serve puts one per node into it."""
    arguments = haproxy.cmdline()
    return Path(arguments[arguments.index("-f") + 1]).parents[1]


def _shared_memory_of(started: Sequence[psutil.Process]) -> set[Path]:
    """Where the engines of this run have their host memory, in a folder named for its raylet."""
    lives = {life_of(process.pid) for process in started if process.name() == "raylet"}
    folders = {application_folder(life, "any").parent for life in lives}
    assert folders
    assert all(folder.exists() for folder in folders)
    return folders


def _kill_leftovers(program: Program) -> None:
    left = set(marked(program.port))
    with suppress(psutil.NoSuchProcess):
        left.update(program.processes())
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    program.process.wait()


def title_of(process: psutil.Process) -> str:
    """The command line by which a process is known; empty for one that has ended."""
    with suppress(psutil.NoSuchProcess):
        return " ".join(process.cmdline())
    return ""
