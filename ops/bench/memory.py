"""Memory of a server's processes, one by one, by a name people know them by."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import PurePath

import psutil

MIB = 2**20


def memory_mb(processes: Iterable[psutil.Process]) -> dict[str, Mapping[str, float]]:
    """MiB by process name; those of one name are added up and counted.

    ``rss`` counts a page that is shared with others whole in each of them, ``pss`` in equal
    parts, ``uss`` not at all. The last two are left out where this user may not read them.
    """
    by_name: dict[str, dict[str, float]] = {}
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            name, sizes = process_name(process), _sizes_mb(process)
            known = by_name.setdefault(name, {"processes": 0})
            known["processes"] += 1
            for kind, size in sizes.items():
                known[kind] = round(known.get(kind, 0.0) + size, 1)
    return dict(sorted(by_name.items(), key=lambda item: -item[1]["rss"]))


def total_mb(by_name: Mapping[str, Mapping[str, float]]) -> Mapping[str, float]:
    """The sum over all processes."""
    kinds = ("processes", "rss", "pss", "uss")
    return {
        kind: round(sum(sizes.get(kind, 0.0) for sizes in by_name.values()), 1) for kind in kinds
    }


def process_name(process: psutil.Process) -> str:
    """The title a process gave itself, the module a Python runs, or the program."""
    program, *arguments = process.cmdline() or [process.name()]
    if "-m" in arguments[:-1]:
        return arguments[arguments.index("-m") + 1]
    if PurePath(program).name.startswith("python"):
        scripts = [argument for argument in arguments if not argument.startswith("-")]
        return "python -c" if "-c" in arguments else PurePath(*scripts[:1]).name
    if program.startswith("ray::"):
        return program.partition(".")[0]  # what follows is the method that it runs just now
    return PurePath(program).name


def _sizes_mb(process: psutil.Process) -> dict[str, float]:
    try:
        memory = process.memory_full_info()
    except psutil.AccessDenied:
        return {"rss": process.memory_info().rss / MIB}
    return {kind: getattr(memory, kind) / MIB for kind in ("rss", "pss", "uss")}
