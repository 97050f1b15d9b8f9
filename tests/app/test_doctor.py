"""The doctor: each thing it looks at, what it makes of it and what it advises."""

import json
import os
import socket
from dataclasses import replace
from pathlib import Path

import pytest

from app.doctor import Verdict, examine
from app.errors import WrongVersionError
from app.machine import Gpu, Haproxy, Machine, Port, Process, Space, read_machine
from app.model_folder import ModelFolder, read_model_folder

GIB = 2**30
HEALTHY = Machine(
    python=(3, 11),
    wrong_version=None,
    is_cuda_engine=False,
    architecture="x86_64",
    cpu_flags=frozenset({"avx2", "avx512f"}),
    gpus=(),
    num_cores=8,
    available_bytes=32 * GIB,
    shared_memory=Space(Path("/shm"), total=16 * GIB, free=16 * GIB),
    ray_folder=Space(Path("/scratch"), total=100 * GIB, free=50 * GIB),
    locked_memory_bytes=None,
    open_files=65536,
    port=Port(8000, is_free=True),
    haproxy=Haproxy("2.8.25", ""),
    has_tcmalloc=True,
    is_autogrouped=False,
    ray_processes=(),
)
A_GPU = (Gpu("NVIDIA H200", "580.65.06"),)
MODEL = ModelFolder(
    path=Path("model"),
    problem="",
    architectures=("LlamaForCausalLM",),
    weights_bytes=1 * GIB,
    has_tokenizer=True,
)


def remarks(machine: Machine, model: ModelFolder | None = None) -> list[tuple[str, Verdict]]:
    """What is not OK."""
    findings = examine(machine, model)
    assert all(bool(each.fix) == (each.verdict is not Verdict.OK) for each in findings)
    return [(each.check, each.verdict) for each in findings if each.verdict is not Verdict.OK]


def test_a_healthy_machine_has_no_remarks() -> None:
    """Where all is well, on a CPU or a GPU, nothing is advised."""
    assert remarks(HEALTHY, MODEL) == []
    assert remarks(replace(HEALTHY, is_cuda_engine=True, gpus=A_GPU), MODEL) == []


@pytest.mark.parametrize(
    ("changes", "check", "verdict"),
    [
        ({"python": (3, 10)}, "Python", Verdict.FAIL),
        ({"python": (3, 14)}, "Python", Verdict.FAIL),
        (
            {"wrong_version": WrongVersionError("ray", "2.9.0", "2.60.0", fix="make setup")},
            "packages",
            Verdict.FAIL,
        ),
        ({"cpu_flags": frozenset({"avx2"})}, "CPU", Verdict.WARN),
        ({"cpu_flags": frozenset({"sse4_2"})}, "CPU", Verdict.FAIL),
        ({"architecture": "riscv64"}, "CPU", Verdict.FAIL),
        ({"gpus": A_GPU}, "GPU", Verdict.WARN),
        ({"is_cuda_engine": True}, "GPU", Verdict.FAIL),
        ({"is_cuda_engine": True, "gpus": (Gpu("A10", "570.12"),)}, "GPU", Verdict.FAIL),
        ({"num_cores": 1.0}, "cores", Verdict.WARN),
        ({"available_bytes": 2 * GIB}, "memory", Verdict.FAIL),
        ({"shared_memory": None}, "shared memory", Verdict.FAIL),
        ({"shared_memory": Space(Path("s"), 2**26, 2**26)}, "shared memory", Verdict.WARN),
        ({"shared_memory": Space(Path("s"), 2**31, 2**31)}, "shared memory", Verdict.WARN),
        ({"open_files": 1024}, "open files", Verdict.WARN),
        ({"port": Port(8000, is_free=False)}, "port 8000", Verdict.FAIL),
        ({"ray_folder": Space(Path("/t"), 10 * GIB, 0)}, "disk /t", Verdict.FAIL),
        ({"ray_folder": Space(Path("/t"), 10 * GIB, 2 * GIB)}, "disk /t", Verdict.WARN),
        ({"ray_folder": Space(Path("/t"), 999 * GIB, 9 * GIB)}, "disk /t", Verdict.WARN),
        ({"haproxy": Haproxy("", "not installed")}, "HAProxy", Verdict.FAIL),
        ({"has_tcmalloc": False}, "allocator", Verdict.WARN),
        ({"is_autogrouped": True}, "turns", Verdict.WARN),
        ({"ray_processes": (Process(7, "raylet"),)}, "Ray", Verdict.WARN),
    ],
)
def test_each_fault_is_the_only_remark(
    changes: dict[str, object], check: str, verdict: Verdict
) -> None:
    """One thing wrong with a machine is one remark, of the right weight, with advice."""
    assert remarks(replace(HEALTHY, **changes)) == [(check, verdict)]  # type: ignore[arg-type]


def test_locked_memory_matters_only_for_copies_to_a_gpu() -> None:
    """A limit on pinned memory is a remark where there is a GPU to copy to, and nowhere else."""
    limited = replace(HEALTHY, locked_memory_bytes=2**23)

    assert remarks(limited) == []
    assert remarks(replace(limited, is_cuda_engine=True, gpus=A_GPU)) == [
        ("locked memory", Verdict.WARN)
    ]


def test_arm_needs_no_avx() -> None:
    """A 64-bit Arm processor is served by kernels of its own."""
    assert remarks(replace(HEALTHY, architecture="aarch64", cpu_flags=frozenset())) == []


def test_a_port_left_to_haproxy_says_so() -> None:
    """A HAProxy that outlived its Serve is named, with how to end it."""
    port = Port(8000, is_free=False, holder="haproxy (process 42)")

    [finding] = [each for each in examine(replace(HEALTHY, port=port), None) if each.fix]

    assert finding.found == "held by haproxy (process 42)"
    assert "a killed one left it" in finding.fix


def test_weights_count_where_engines_compute_on_the_cpu() -> None:
    """A model too large for this memory is a fault on the CPU, and the GPU's affair elsewhere."""
    large = replace(MODEL, weights_bytes=40 * GIB)

    assert remarks(HEALTHY, large) == [("memory", Verdict.FAIL)]
    assert remarks(replace(HEALTHY, is_cuda_engine=True, gpus=A_GPU), large) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"problem": "has no config.json"},
        {"weights_bytes": 0},
        {"has_tokenizer": False},
    ],
)
def test_an_incomplete_model_is_a_fault(changes: dict[str, object]) -> None:
    """A folder without config, weights or tokenizer cannot be served from."""
    model = replace(MODEL, **changes)  # type: ignore[arg-type]

    assert remarks(HEALTHY, model) == [("model model", Verdict.FAIL)]


def test_a_models_folder_is_read(tmp_path: Path) -> None:
    """Architecture, size of the weights and tokenizer are found without loading the model."""
    config = {"architectures": ["LlamaForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    (tmp_path / "model.safetensors").write_bytes(b"x" * 123)
    (tmp_path / "tokenizer.json").write_text("{}", encoding="utf-8")

    assert read_model_folder(tmp_path) == ModelFolder(
        path=tmp_path,
        problem="",
        architectures=("LlamaForCausalLM",),
        weights_bytes=123,
        has_tokenizer=True,
    )


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (None, "has no config.json"),
        ("{", "config.json is not JSON: "),
        ("\udcff", "config.json is not JSON: "),
        ("[]", "config.json names no architectures"),
        ('{"architectures": "Llama"}', "config.json names no architectures"),
    ],
)
def test_what_is_wrong_with_a_config_is_said(
    config: str | None, problem: str, tmp_path: Path
) -> None:
    """A missing, unreadable or empty config is a sentence."""
    if config is not None:
        (tmp_path / "config.json").write_bytes(config.encode(errors="surrogateescape"))

    assert read_model_folder(tmp_path).problem.startswith(problem)


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    """A path that leads nowhere is a sentence."""
    assert read_model_folder(tmp_path / "x").problem == "there is no such folder"


def test_this_machine_can_be_read() -> None:
    """Every fact is found on the machine that runs the tests, whatever it says."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        machine = read_machine(port)

    assert machine.num_cores > 0
    assert machine.available_bytes > 0
    assert machine.port.number == port
    assert not machine.port.is_free
    assert f"process {os.getpid()}" in str(machine.port.holder)
    assert examine(machine, None)
