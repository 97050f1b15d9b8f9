"""The doctor: whether this machine can serve, and what to do where it cannot.

Owns the bounds and the advice, as functions of plain values. The values are `app.machine`'s and
`app.model_folder`'s; printing is `app.cli.doctor`'s.
"""

from dataclasses import dataclass
from enum import StrEnum

from app.errors import WrongVersionError
from app.machine import Gpu, Haproxy, Machine, Port, Process, Space
from app.memory import DEFAULT_CPU_KV_GIB, ENGINE_GIB, REST_GIB
from app.model_folder import ModelFolder
from app.settings import AppArgs

MIB, GIB = 2**20, 2**30

FIRST_PYTHON, LAST_PYTHON = (3, 11), (3, 12)
LOWEST_DRIVER = 580  # CUDA 13, which torch 2.13 is built for
# HAProxy's default of 4096 connections, each with a client's and a gateway's end, and Ray's own.
OPEN_FILES = 10_240


class Verdict(StrEnum):
    """OK serves; WARN serves worse than it could, or not everything; FAIL does not serve."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing looked at: what was found, and what to do unless it is OK."""

    check: str
    verdict: Verdict
    found: str
    fix: str = ""


def examine(machine: Machine, model: ModelFolder | None) -> list[Finding]:
    """All findings about this machine, and about serving this model on it."""
    on_cuda = machine.is_cuda_engine
    findings = [
        check_python(machine.python),
        check_packages(machine.wrong_version),
        check_instructions(machine.architecture, machine.cpu_flags),
        check_gpu(machine.gpus, is_cuda_engine=on_cuda),
        check_cores(machine.num_cores),
        check_memory(machine.available_bytes, needed_bytes(model, on_cuda=on_cuda)),
        check_shared_memory(machine.shared_memory),
        check_locked_memory(machine.locked_memory_bytes, on_cuda=on_cuda),
        check_open_files(machine.open_files),
        check_port(machine.port),
        check_ray_folder(machine.ray_folder),
        check_ray(machine.ray_processes),
        check_haproxy(machine.haproxy),
        check_allocator(on_cuda=on_cuda, has_tcmalloc=machine.has_tcmalloc),
        check_autogroup(on_cuda=on_cuda, is_on=machine.is_autogrouped),
    ]
    return findings if model is None else [*findings, check_model(model)]


def check_python(version: tuple[int, int]) -> Finding:
    found = _dotted(version)
    if FIRST_PYTHON <= version <= LAST_PYTHON:
        return _ok("Python", found)
    wanted = f"{_dotted(FIRST_PYTHON)} to {_dotted(LAST_PYTHON)}"
    return _fail("Python", f"{found}, but {wanted} is wanted", "make setup PYTHON=python3.11")


def check_packages(wrong: WrongVersionError | None) -> Finding:
    """The installed engine, Ray and torch, and what must not be beside them."""
    if wrong is None:
        return _ok("packages", "as locked")
    found = f"{wrong.package}: found {wrong.found}, wanted {wrong.wanted}"
    return _fail("packages", found, wrong.fix)


def check_instructions(architecture: str, flags: frozenset[str]) -> Finding:
    """The instructions that vLLM's CPU kernels are compiled for."""
    if architecture in {"aarch64", "arm64"}:
        return _ok("CPU", architecture)
    if architecture != "x86_64":
        return _fail("CPU", architecture, "use a machine with an x86-64 or 64-bit Arm processor")
    if "avx2" not in flags:
        return _fail(
            "CPU", "no AVX2", "use an x86-64 processor with AVX2, in a VM: pass it through"
        )
    if "avx512f" not in flags:
        return _warn("CPU", "AVX2, no AVX-512", "a processor with AVX-512 computes faster")
    return _ok("CPU", "AVX2, AVX-512")


def check_gpu(gpus: tuple[Gpu, ...], *, is_cuda_engine: bool) -> Finding:
    if not gpus:
        if is_cuda_engine:
            fix = "install NVIDIA's driver (nvidia-smi must list a GPU), or `make setup DEVICE=cpu`"
            return _fail("GPU", "none answers, but the engine is built for CUDA", fix)
        return _ok("GPU", "none: the CPU computes")
    found = f"{len(gpus)} x {gpus[0].name}, driver {gpus[0].driver}"
    if not is_cuda_engine:
        return _warn("GPU", f"{found}: unused, the engine is the CPU's", "make setup DEVICE=cuda")
    major = gpus[0].driver.partition(".")[0]
    if major.isdecimal() and int(major) < LOWEST_DRIVER:
        return _fail("GPU", found, f"install NVIDIA's driver {LOWEST_DRIVER} or newer")
    return _ok("GPU", found)


def check_cores(num_cores: float) -> Finding:
    found = f"{num_cores:g}"
    if num_cores < 2:
        return _warn("cores", found, "give it two cores: engine and gateway share one now")
    return _ok("cores", found)


def needed_bytes(model: ModelFolder | None, *, on_cuda: bool) -> int:
    """Memory of this machine that serving takes with no setting changed."""
    args = AppArgs.model_validate({})
    per_engine = (ENGINE_GIB + args.host_kv_gib) * GIB
    if not on_cuda:
        per_engine += DEFAULT_CPU_KV_GIB * GIB + (model.weights_bytes if model else 0)
    return int(args.max_replicas * per_engine + REST_GIB * GIB)


def check_memory(available_bytes: int, needed_bytes: int) -> Finding:
    found = f"{_gib(available_bytes)} available, {_gib(needed_bytes)} needed"
    if available_bytes < needed_bytes:
        fix = "stop other programs, or serve with --replicas 1 or a smaller model"
        return _fail("memory", found, fix)
    return _ok("memory", found)


def check_shared_memory(space: Space | None) -> Finding:
    """Shared memory, where Ray's object store and the engines' queues and host copies live."""
    if space is None:
        return _fail("shared memory", "missing", "mount it: `mount -t tmpfs shm /dev/shm`")
    args = AppArgs.model_validate({})
    wanted = GIB + int(args.replicas * args.host_kv_gib * GIB)
    found = f"{_gib(space.free)} free of {_gib(space.total)}"
    if space.free < wanted:
        fix = (
            f"in a container: `docker run --shm-size={-(-wanted // GIB)}g` (Kubernetes: an "
            "emptyDir of medium Memory); else the KV of an engine that dies is lost with it"
        )
        return _warn("shared memory", found, fix)
    return _ok("shared memory", found)


def check_locked_memory(limit_bytes: int | None, *, on_cuda: bool) -> Finding:
    """The memory a process may pin, which switched-out KV needs for fast copies to a GPU."""
    found = "unlimited" if limit_bytes is None else f"{limit_bytes / MIB:g} MiB"
    if on_cuda and limit_bytes is not None:
        fix = "`ulimit -l unlimited` (docker: `--ulimit memlock=-1`)"
        return _warn("locked memory", found, fix)
    return _ok("locked memory", found)


def check_open_files(limit: int | None) -> Finding:
    found = "unlimited" if limit is None else f"{limit:,}"
    if limit is not None and limit < OPEN_FILES:
        return _warn("open files", f"{found}, {OPEN_FILES:,} for 4,096 clients", "ulimit -n 65536")
    return _ok("open files", found)


def check_port(port: Port) -> Finding:
    check = f"port {port.number}"
    if port.is_free:
        return _ok(check, "free")
    if port.holder is None:
        found = "in use, or not for this user"
        return _fail(check, found, "stop what holds it, or serve on another (--port)")
    fix = "stop it, or serve on another port (--port)"
    if port.holder.startswith("haproxy "):
        # Serve starts HAProxy as a process of its own, which a killed Serve leaves behind.
        fix = "if no Serve runs here, a killed one left it: end it with `kill`"
    return _fail(check, f"held by {port.holder}", fix)


def check_ray_folder(space: Space) -> Finding:
    """Room for Ray's sessions and logs, and for objects it moves out of memory."""
    check, found = f"disk {space.path}", f"{_gib(space.free)} free of {_gib(space.total)}"
    fix = "make room, or set RAY_TMPDIR to a folder on a larger disk"
    if space.free < GIB:
        return _fail(check, found, fix)
    if space.free < 5 * GIB or space.free < 0.05 * space.total:  # past 95 % Ray writes no objects
        return _warn(check, found, fix)
    return _ok(check, found)


def check_ray(processes: tuple[Process, ...]) -> Finding:
    if processes:
        running = ", ".join(map(str, processes))
        return _warn("Ray", f"runs already: {running}", "`ray stop`, if a killed run left it")
    return _ok("Ray", "not running yet")


def check_haproxy(haproxy: Haproxy) -> Finding:
    if haproxy.problem:
        return _fail("HAProxy", haproxy.problem, "make setup")
    return _ok("HAProxy", haproxy.version)


def check_allocator(*, on_cuda: bool, has_tcmalloc: bool) -> Finding:
    """The memory allocator that makes engines on a CPU faster."""
    if on_cuda or has_tcmalloc:
        return _ok("allocator", "tcmalloc" if has_tcmalloc else "matters only on a CPU")
    return _warn(
        "allocator", "no tcmalloc", "`apt-get install libtcmalloc-minimal4`: faster engines"
    )


def check_autogroup(*, on_cuda: bool, is_on: bool) -> Finding:
    """Whether Linux shares the processor by session (man 7 sched, "the autogroup feature").

    While engines keep every core busy, a client in a session of its own, such as another
    terminal's, then gets no turn for a second and more, though it hardly needs one.
    """
    if on_cuda or not is_on:
        return _ok("turns", "by process" if not is_on else "matter only on a CPU")
    fix = "`sysctl kernel.sched_autogroup_enabled=0`: clients on this machine then answer sooner"
    return _warn("turns", "by session", fix)


def check_model(model: ModelFolder) -> Finding:
    check = f"model {model.path}"
    if model.problem:
        fix = "name a folder with a model in it; `fastswitch demo-model DIR` writes one"
        return _fail(check, model.problem, fix)
    found = f"{', '.join(model.architectures)}, {_gib(model.weights_bytes)} of weights"
    if not model.weights_bytes:
        return _fail(check, "no weights beside config.json", "copy the model's *.safetensors too")
    if not model.has_tokenizer:
        return _fail(check, f"{found}, no tokenizer", "copy the model's tokenizer files too")
    return _ok(check, found)


def _ok(check: str, found: str) -> Finding:
    return Finding(check, Verdict.OK, found)


def _warn(check: str, found: str, fix: str) -> Finding:
    return Finding(check, Verdict.WARN, found, fix)


def _fail(check: str, found: str, fix: str) -> Finding:
    return Finding(check, Verdict.FAIL, found, fix)


def _dotted(version: tuple[int, int]) -> str:
    return ".".join(map(str, version))


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:.3g} GiB"
