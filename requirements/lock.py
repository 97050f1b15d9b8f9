"""Writes cpu.txt, cuda.txt and dev.txt from the .in files beside it: one exact version for all.

Owns what is pinned, and nothing of how it is installed: scripts/setup.sh does that.
pip resolves; nothing is installed. Run it with the Python that the locks are for:

    python3.11 requirements/lock.py
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent

# vLLM declares these, and the builds that a package index serves belong to CUDA torch:
# beside CPU torch they break `import transformers`. Nothing that we serve needs them.
LEFT_OUT = {"torchvision", "torchaudio", "torchcodec"}

HEADER = """\
# Written by requirements/lock.py from {sources}: change those and run it again.
# Install with --no-deps. Left out though vLLM declares them: torchvision, torchaudio, torchcodec.
"""
CPU_NOTE = """\
# torch's CPU build, where the package index lacks it: https://download.pytorch.org/whl/cpu
"""
DEV_NOTE = """\
# What cpu.txt and cuda.txt have not both pinned already.
"""


def main() -> None:
    """Resolve both devices, then the tools on top of what both have in common."""
    cpu = resolve("cpu.in")
    cuda = resolve("cuda.in")
    shared = {name: version for name, version in cpu.items() if cuda.get(name) == version}
    tools = resolve("dev.in", constraints=shared)
    dev = {name: version for name, version in tools.items() if name not in shared}
    write("cpu.txt", cpu, HEADER.format(sources="cpu.in and runtime.in") + CPU_NOTE)
    write("cuda.txt", cuda, HEADER.format(sources="cuda.in and runtime.in"))
    write("dev.txt", dev, HEADER.format(sources="dev.in") + DEV_NOTE)


def resolve(source: str, constraints: dict[str, str] | None = None) -> dict[str, str]:
    """The versions pip would install into an empty environment, by normalised name."""
    print(f"resolving {source}", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder, "constraints.txt")
        pins.write_text("".join(f"{n}=={v}\n" for n, v in (constraints or {}).items()))
        report = Path(folder, "report.json")
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed",
             "--report", report, "--constraint", pins, "--requirement", HERE / source],
            check=True,
        )  # fmt: skip
        packages = [item["metadata"] for item in json.loads(report.read_text())["install"]]
    versions = {normalised(package["name"]): package["version"] for package in packages}
    return {name: versions[name] for name in sorted(versions) if name not in LEFT_OUT}


def normalised(name: str) -> str:
    """A package's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def pin(name: str, version: str) -> str:
    """``==``, but for torch's CUDA build: as ``==2.13.0`` its CPU build 2.13.0+cpu would do too."""
    is_cuda_torch = name == "torch" and "+" not in version
    return f"{name}==={version}" if is_cuda_torch else f"{name}=={version}"


def write(target: str, versions: dict[str, str], header: str) -> None:
    """One pin a line under ``header``."""
    pins = "".join(f"{pin(name, version)}\n" for name, version in versions.items())
    (HERE / target).write_text(header + pins)
    print(f"{target}: {len(versions)} packages", file=sys.stderr)


if __name__ == "__main__":
    main()
