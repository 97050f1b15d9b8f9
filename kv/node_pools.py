"""Pools of host memory that outlive their engines: which lie on this node, and whose they are.

Owns the folders in shared memory: names, permissions, who has which pool, what crashed runs have
left. What a pool's files hold is ``kv.pool_file``'s. A pool has an owner while the kernel's lock on
it is held, and that ends with the owner's process, however it ends. So there is no process that
keeps the pools: it would have to outlive all engines, which files in shared memory do anyway.

    /dev/shm/fastswitch-UID / RUN / APPLICATION / KIND-TOKEN / owner, index, rank-0, ...

``RUN`` is the life of the process that starts this node's engines. An application of the same
name in another run never sees the pools of this one, and what is left of a run that is over can
be told from the living.
"""

import contextlib
import fcntl
import logging
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from kv.errors import SharedPoolError

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  (one folder in there, of this user alone)
MIB = 2**20
_OWNER = "owner"
_UNFINISHED = "."  # begins the name of a pool that is being made


@dataclass(frozen=True, slots=True)
class PoolClaim:
    """One pool, owned until ``remove`` or the end of the process.

    ``num_refused`` pools of the same application were of no use to its owner and are gone.
    """

    folder: Path
    num_refused: int
    _lock: int

    def remove(self) -> None:
        """End the pool: nobody is to have what is in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


def life_of(pid: int) -> str:
    """Names the life of a process: a number comes back for another process, with a later start."""
    return f"{pid}-{_start_ticks(pid)}"


def application_folder(run: str, application: str, shared_memory: Path = SHARED_MEMORY) -> Path:
    """Where the pools of one application of one run are, for this user."""
    return _user_folder(shared_memory) / run / quote(application or "_", safe="")


def claim_pool(folder: Path, kind: str) -> PoolClaim:
    """Own a pool of an application: one that a dead owner has left, or a new one.

    Pools of the application that nobody owns and that are of another ``kind``, so were made for
    other engine arguments, are removed; so is what runs that are over have left.

    Raises:
        SharedPoolError: there is no shared memory, or a folder in there is not ours alone.
    """
    user, run = folder.parents[1], folder.parent
    try:
        _make_all_private(user, run, folder)
    except SharedPoolError:
        # Another process that removes leftovers takes an empty user's folder along, which ours was
        # before ``run`` was in it. Whatever else is wrong is wrong the second time too.
        _make_all_private(user, run, folder)
    remove_leftovers(user.parent, own_run=run.name)
    found, num_refused = None, 0
    for pool in sorted(folder.glob("[!.]*")):
        if found is not None and pool.name.startswith(f"{kind}-"):
            continue  # for another successor
        lock = _try_own(pool)
        if lock is None:
            continue
        if pool.name.startswith(f"{kind}-"):
            found = (pool, lock)
        else:
            _remove(pool, "of other engine arguments")
            os.close(lock)
            num_refused += 1
    pool, lock = found or _make_pool(folder, kind)
    return PoolClaim(pool, num_refused, lock)


def pools_beside(pool: Path) -> list[Path]:
    """The other pools of the application that are of this one's kind, whoever has them."""
    kind, _, _ = pool.name.rpartition("-")
    return sorted(each for each in pool.parent.glob(f"{kind}-*") if each != pool)


def remove_leftovers(shared_memory: Path = SHARED_MEMORY, own_run: str = "") -> None:
    """Remove this user's pools of runs that are over; those that still have an owner stay."""
    user = _user_folder(shared_memory)
    with contextlib.suppress(OSError):
        for run in user.iterdir():
            if (
                run.name != own_run
                and _is_over(run.name)
                and not any(map(_has_owner, run.glob("*/*")))
            ):
                _remove(run, "of a run that is over")
        user.rmdir()  # if that was all


def _user_folder(shared_memory: Path) -> Path:
    return shared_memory / f"fastswitch-{os.geteuid()}"


def _make_all_private(*folders: Path) -> None:
    for each in folders:
        _make_private(each)


def _make_private(folder: Path) -> None:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError as error:
        raise SharedPoolError(str(folder), f"no folder can be made ({error.strerror})") from None
    is_ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    if not is_ours or stat.S_IMODE(found.st_mode) & 0o077:
        raise SharedPoolError(str(folder), "others than this user can get at it; remove it")


def _make_pool(folder: Path, kind: str) -> tuple[Path, int]:
    name = f"{kind}-{secrets.token_hex(4)}"
    unfinished = folder / f"{_UNFINISHED}{name}"
    try:
        unfinished.mkdir(mode=0o700)
        lock = _lock(unfinished)
        assert lock is not None
        # Under its name only once it has its owner: nobody takes it in between.
        return unfinished.rename(folder / name), lock
    except OSError as error:
        raise SharedPoolError(str(folder), f"no pool can be made ({error.strerror})") from None


def _lock(pool: Path) -> int | None:
    lock = os.open(pool / _OWNER, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return None
    return lock


def _try_own(pool: Path) -> int | None:
    """Own a pool that is there; None if somebody else does, or it has just gone."""
    try:
        lock = _lock(pool)
    except OSError:
        return None
    if lock is None:
        return None
    with contextlib.suppress(OSError):
        if (pool / _OWNER).stat().st_ino == os.fstat(lock).st_ino:
            return lock
    os.close(lock)  # its last owner removed it in the moment before
    return None


def _has_owner(pool: Path) -> bool:
    lock = _try_own(pool)
    if lock is None:
        return pool.exists()
    os.close(lock)
    return False


def _remove(folder: Path, what: str) -> None:
    num_bytes = sum(_sizes(folder))
    shutil.rmtree(folder, ignore_errors=True)
    logger.warning("Removed %.1f MiB of shared memory %s: %s", num_bytes / MIB, what, folder)


def _sizes(folder: Path) -> Iterator[int]:
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            yield path.lstat().st_blocks * 512


def _is_over(run: str) -> bool:
    pid, _, started = run.partition("-")
    if not pid.isdecimal():
        return True
    try:
        return started != str(_start_ticks(int(pid)))
    except OSError:
        return True


def _start_ticks(pid: int) -> int:
    """When a process started, by the kernel's clock.

    Raises:
        ProcessLookupError: it has ended, be it that nobody has asked how.
    """
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        raise ProcessLookupError(pid) from None
    # The name in parentheses may hold anything; the fields behind it are plain.
    state, *fields = status.rpartition(")")[2].split()
    if state in ("Z", "X"):
        raise ProcessLookupError(pid)
    return int(fields[18])
