"""What an engine is started with, from the settings."""

import subprocess
from pathlib import Path

import pytest

from app import engine_settings
from app.engine_settings import STREAMED_BYTES, engine_args, engine_environment
from app.settings import AppArgs, FairnessSettings
from scheduler.engine_config import SchedulerSettings

GIB = 2**30
LOADER = Path("/lib64/ld-linux-x86-64.so.2")  # tells tunables since glibc 2.33


def test_settings_become_engine_arguments() -> None:
    """Each under vLLM's name for it."""
    args = AppArgs(
        model="owner/name",
        served_model_name="mine",
        max_model_len=1000,
        max_num_seqs=7,
        max_num_batched_tokens=512,
        tensor_parallel_size=2,
        kv_cache_gib=0.5,
        dtype="bfloat16",
    )
    made = engine_args(args, "owner/name", on_cuda=True)

    wanted = {
        "model": "owner/name",
        "served_model_name": ["mine"],
        "max_model_len": 1000,
        "max_num_seqs": 7,
        "max_num_batched_tokens": 512,
        "tensor_parallel_size": 2,
        "kv_cache_memory_bytes": GIB // 2,
        "dtype": "bfloat16",
        "scheduling_policy": "priority",
    }
    assert made == {**made, **wanted}


def test_more_engine_arguments_are_passed_on() -> None:
    """Whatever else vLLM knows goes in by its own name."""
    args = AppArgs(engine_args={"enforce_eager": True})
    assert engine_args(args, "m", on_cuda=False)["enforce_eager"] is True


def test_the_cpu_computes_in_full_precision_unless_told_otherwise() -> None:
    """Equal inputs give equal tokens there; a GPU takes the model's own type."""
    assert engine_args(AppArgs(), "m", on_cuda=False)["dtype"] == "float32"
    assert engine_args(AppArgs(), "m", on_cuda=True)["dtype"] == "auto"
    assert engine_args(AppArgs(dtype="bfloat16"), "m", on_cuda=False)["dtype"] == "bfloat16"


def test_steps_left_out_are_short_on_the_cpu_and_vllms_choice_on_a_gpu() -> None:
    """Short, but with room for every sequence, and not where prompts cannot be cut into pieces."""
    name = "max_num_batched_tokens"
    whole = AppArgs(engine_args={"enable_chunked_prefill": False})
    assert engine_args(AppArgs(), "m", on_cuda=False)[name] == 128
    assert engine_args(AppArgs(max_num_seqs=300), "m", on_cuda=False)[name] == 300
    assert engine_args(AppArgs(max_num_batched_tokens=64), "m", on_cuda=False)[name] == 64
    assert engine_args(whole, "m", on_cuda=False)[name] is None
    assert engine_args(AppArgs(), "m", on_cuda=True)[name] is None


def test_kv_memory_left_out_is_a_gibibyte_on_the_cpu_and_vllms_choice_on_a_gpu() -> None:
    """On a GPU vLLM measures what is free; on the CPU it would take far too much."""
    assert engine_args(AppArgs(), "m", on_cuda=False)["kv_cache_memory_bytes"] == GIB
    assert engine_args(AppArgs(), "m", on_cuda=True)["kv_cache_memory_bytes"] is None


def test_without_host_memory_there_is_no_connector() -> None:
    """Switched-out requests are then recomputed, as vLLM does."""
    with_host = engine_args(AppArgs(host_kv_gib=0.5), "m", on_cuda=False)["kv_transfer_config"]
    assert with_host["kv_connector_extra_config"] == {"host_kv_gib": 0.5}
    assert engine_args(AppArgs(host_kv_gib=0), "m", on_cuda=False)["kv_transfer_config"] is None


def test_the_bound_on_switches_reaches_the_engine_if_there_is_one() -> None:
    """As vLLM passes on what is not its own."""
    bound = AppArgs(fairness=FairnessSettings(max_switches_per_s=5.0))
    unbound = AppArgs(fairness=FairnessSettings(max_switches_per_s=None))

    told = engine_args(bound, "m", on_cuda=False)["additional_config"]

    assert SchedulerSettings.read(told) == SchedulerSettings(max_switches_per_s=5.0)
    assert engine_args(unbound, "m", on_cuda=False)["additional_config"] == {}


def test_the_model_is_called_by_its_folder(tmp_path: Path) -> None:
    """Where nothing else is said: clients need not know where it lies."""
    folder = tmp_path / "my-model"
    folder.mkdir()
    args = AppArgs(model=str(folder))
    assert engine_args(args, str(folder), on_cuda=False)["served_model_name"] == ["my-model"]


@pytest.mark.parametrize(
    ("num_cores", "replicas", "threads"),
    [(9, 2, "4"), (8, 2, "3"), (8, 3, "2"), (2, 2, "1"), (1, 4, "1")],
)
def test_engines_share_the_cores(num_cores: int, replicas: int, threads: str) -> None:
    """Each computes with its part of all but one, and with one at least."""
    args = AppArgs(replicas=replicas)
    environment = engine_environment(args, on_cuda=False, num_cores=num_cores)
    assert environment["OMP_NUM_THREADS"] == threads


def test_on_a_gpu_the_environment_is_left_alone() -> None:
    """Threads and allocation matter to the CPU's engine only."""
    environment = engine_environment(AppArgs(), on_cuda=True, num_cores=8)
    assert environment.keys() == {"VLLM_NO_USAGE_STATS", "VLLM_LOGGING_LEVEL"}


def test_the_model_runs_inside_the_engine_process_unless_it_is_split() -> None:
    """One process less; parts of a model need their own."""
    alone = engine_environment(AppArgs(), on_cuda=False, num_cores=2)
    split = engine_environment(AppArgs(tensor_parallel_size=2), on_cuda=False, num_cores=2)

    assert alone["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in split


def test_the_faster_allocator_is_used_where_it_is_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before whatever else is loaded first already; where it is missing, nothing is changed."""
    library = tmp_path / "libtcmalloc_minimal.so.4"
    monkeypatch.setattr(engine_settings, "TCMALLOC", (library,))
    monkeypatch.setenv("LD_PRELOAD", "other.so")
    assert "LD_PRELOAD" not in engine_environment(AppArgs(), on_cuda=False, num_cores=2)

    library.touch()
    environment = engine_environment(AppArgs(), on_cuda=False, num_cores=2)
    assert environment["LD_PRELOAD"] == f"{library}:other.so"


def test_swaps_write_past_the_caches_unless_the_operator_says_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of two values for one tunable glibc takes the last."""
    name = "glibc.cpu.x86_non_temporal_threshold"
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    environment = engine_environment(AppArgs(), on_cuda=False, num_cores=2)
    assert environment["GLIBC_TUNABLES"] == f"{name}=262144"

    monkeypatch.setenv("GLIBC_TUNABLES", f"{name}=1048576")
    environment = engine_environment(AppArgs(), on_cuda=False, num_cores=2)
    assert environment["GLIBC_TUNABLES"] == f"{name}=262144:{name}=1048576"


@pytest.mark.skipif(not LOADER.exists(), reason="the tunable is that of glibc on x86")
@pytest.mark.parametrize("inherited", ["", "glibc.cpu.x86_non_temporal_threshold=0x100000"])
def test_the_c_library_knows_from_what_size_on(
    inherited: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its own account of the values in force."""
    monkeypatch.setenv("GLIBC_TUNABLES", inherited)
    environment = engine_environment(AppArgs(), on_cuda=False, num_cores=2)
    told = subprocess.run(
        [LOADER, "--list-tunables"],
        env={"GLIBC_TUNABLES": environment["GLIBC_TUNABLES"]},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    in_force = next(line for line in told.splitlines() if "x86_non_temporal_threshold" in line)
    assert f": {0x100000 if inherited else STREAMED_BYTES:#x} " in in_force
