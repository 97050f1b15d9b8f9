"""A file of a pool in shared memory: locked, mapped, and either taken over whole or made anew.

Owns a file's size, permissions and header. The header's fingerprint says what was put in and how
it lies; only who would put in the same, in the same way, takes over what is there, or reads it
beside its owner. What the content means is the owner's.
"""

import fcntl
import mmap
import os
import stat
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

import numpy as np

from kv.errors import SharedPoolError

HEADER_BYTES = 4096  # a page, so that what follows lies on one
FINGERPRINT_BYTES = 32
_MAGIC = np.frombuffer(b"FSPOOL02", dtype=np.uint8)
_LIFE_AT = 64
_NOBODY = 0  # no life is called so


def fingerprint(*facts: object) -> bytes:
    """Equal for equal facts, each of which is told by its ``repr``."""
    return blake2b(repr(facts).encode(), digest_size=FINGERPRINT_BYTES).digest()


class PoolFile:
    """``num_bytes`` of shared memory under a path, for this process alone while it lives.

    What is there is kept if its fingerprint and its size are the wanted ones (``is_kept``). Else it
    is all zeros, and ``is_refused`` tells whether something else was there.
    """

    def __init__(self, path: Path, wanted: bytes, num_bytes: int) -> None:
        """Raises SharedPoolError: somebody else has the file, or shared memory has no room."""
        identity = _identity(wanted)
        self._path = path
        self._size = HEADER_BYTES + num_bytes
        self._is_closed = False
        self._descriptor = _open_private(path)
        try:
            self._own()
            num_before = os.fstat(self._descriptor).st_size
            header = np.frombuffer(os.pread(self._descriptor, HEADER_BYTES, 0), dtype=np.uint8)
            self.is_kept = num_before == self._size and np.array_equal(
                header[: len(identity)], identity
            )
            self.is_refused = num_before > 0 and not self.is_kept
            if self.is_refused:
                self._exchange()
            if not self.is_kept:
                self._make_anew()
            self._memory = mmap.mmap(
                # All pages now: the first touch of one costs several times a copy's.
                self._descriptor,
                self._size,
                mmap.MAP_SHARED | mmap.MAP_POPULATE,
            )
        except BaseException:
            os.close(self._descriptor)
            raise
        whole = np.frombuffer(self._memory, dtype=np.uint8)
        self.content = whole[HEADER_BYTES:]
        if not self.is_kept:
            # Last, so that a file that was left half made is made anew.
            whole[: len(identity)] = identity

    def name_life(self, life: int) -> None:
        """Leave word that the content is in the hands of this life of the pool's owner."""
        np.frombuffer(self._memory, dtype="<u8", count=1, offset=_LIFE_AT)[0] = life

    def name_nobody(self) -> None:
        """Leave word that the content may not be what a life before has made it."""
        self.name_life(_NOBODY)

    def close(self) -> None:
        """Let go of the file; what it holds stays for the next one. May be said twice."""
        if self._is_closed:
            return
        self._is_closed = True
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)  # the mapping has a descriptor of its own
        os.close(self._descriptor)

    def _own(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SharedPoolError(str(self._path), "another process still has it") from None

    def _exchange(self) -> None:
        """Put an empty file in the place of this one, which neighbours may be reading.

        Cut short under their hands it would kill them. It goes with the last of them.
        """
        self._path.unlink()
        empty = _open_private(self._path)
        os.close(self._descriptor)
        self._descriptor = empty
        self._own()

    def _make_anew(self) -> None:
        try:
            os.posix_fallocate(self._descriptor, 0, self._size)
        except OSError as error:
            os.ftruncate(self._descriptor, 0)
            problem = f"{self._size} bytes cannot be had ({error.strerror})"
            raise SharedPoolError(str(self._path), problem) from None


@dataclass(frozen=True, slots=True)
class FileKind:
    """What files have in common whose content means the same: their size and how they begin."""

    size: int
    identity: bytes


def kind_of(path: Path) -> FileKind:
    """Raises SharedPoolError: there is no such file of ours."""
    descriptor = _open_private(path, os.O_RDONLY)
    try:
        identity = os.pread(descriptor, len(_MAGIC) + FINGERPRINT_BYTES, 0)
        return FileKind(os.fstat(descriptor).st_size, identity)
    finally:
        os.close(descriptor)


class NeighbourFile:
    """Another owner's file as it stands, to be read while that one writes.

    Mapped as long as this, or what was made of ``content``, is there, and no longer: what a pool
    that has gone took must not stay taken.
    """

    def __init__(self, path: Path, kind: FileKind) -> None:
        """Raises SharedPoolError: there is none of this user's, or none of this ``kind``."""
        descriptor = _open_private(path, os.O_RDONLY)
        try:
            if os.fstat(descriptor).st_size != kind.size:
                raise SharedPoolError(str(path), "it is of another kind")
            self._memory = mmap.mmap(descriptor, kind.size, mmap.MAP_SHARED, mmap.PROT_READ)
        finally:
            os.close(descriptor)
        # Its owner writes this last, and in a file of this size never changes it.
        if self._memory[: len(kind.identity)] != kind.identity:
            raise SharedPoolError(str(path), "it is of another kind")
        self.content = np.frombuffer(self._memory, dtype=np.uint8)[HEADER_BYTES:]

    @property
    def life(self) -> int | None:
        """In whose hands the content is; None while nobody answers for it."""
        life = int(np.frombuffer(self._memory, dtype="<u8", count=1, offset=_LIFE_AT)[0])
        return None if life == _NOBODY else life


def life_in(path: Path) -> int | None:
    """The life that a file was left word of last; None if there is no such file."""
    try:
        found = np.fromfile(path, dtype="<u8", count=1, offset=_LIFE_AT)
    except OSError:
        return None
    return int(found[0]) if found.size else None


def _identity(wanted: bytes) -> np.ndarray:
    assert len(wanted) == FINGERPRINT_BYTES
    return np.concatenate([_MAGIC, np.frombuffer(wanted, dtype=np.uint8)])


def _open_private(path: Path, access: int = os.O_RDWR | os.O_CREAT) -> int:
    """Open or make a file that only this user can read, and nobody but this user has made.

    Raises:
        SharedPoolError: it is somebody else's, or no plain file.
    """
    try:
        descriptor = os.open(path, access | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise SharedPoolError(str(path), f"it cannot be opened ({error.strerror})") from None
    found = os.fstat(descriptor)
    is_ours = stat.S_ISREG(found.st_mode) and found.st_uid == os.geteuid()
    if not is_ours or stat.S_IMODE(found.st_mode) & 0o077:
        os.close(descriptor)
        raise SharedPoolError(str(path), "others than this user can get at it")
    return descriptor
