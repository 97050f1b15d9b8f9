"""Tenants: whom a request belongs to, and with what weight each is served.

Owns the settings in force and their re-reading; the file's format is `app.tenants_file`, the form
of a key `app.keys`. What a weight does to the order of requests is the scheduler's.
"""

import hashlib
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic

from app.errors import RevokedKeyError, TenantsFileError, UnknownKeyError
from app.keys import is_secret_of, parse_key
from app.settings import TenantSettings
from app.tenants_file import KeyRecord, TenantRecord, TenantsFile, read_tenants_file
from scheduler.shares import TenantShare

DEFAULT_TENANT = "default"

logger = logging.getLogger(__name__)


def open_directory(path: Path | None, tenants: Mapping[str, TenantSettings]) -> "TenantDirectory":
    """The tenants of the file; where there is none, keys are off and these weights count.

    Raises:
        TenantsFileError: the file is missing or broken.
    """
    if path is not None:
        return TenantDirectory(path)
    records = {name: TenantRecord(weight=tenant.weight) for name, tenant in tenants.items()}
    return TenantDirectory(TenantsFile(keys_required=False, tenants=records))


def tenant_salt(tenant: str) -> str:
    """What marks a tenant's cached KV as its own, the same in every process.

    All are equally long: nothing a client adds behind one makes it another tenant's.
    """
    return hashlib.sha256(tenant.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class _Reading:
    """One whole reading of the file, with every key at hand by its id."""

    settings: TenantsFile
    keys: Mapping[str, tuple[str, KeyRecord]]


class TenantDirectory:
    """Who may use the service, and with what weight.

    The settings in force are always one whole file that passed every check: an edit takes effect
    altogether or not at all. ``refresh`` may run in another thread than the rest.
    """

    def __init__(
        self,
        source: Path | TenantsFile,
        *,
        clock: Callable[[], float] = monotonic,
        recheck_s: float = 1.0,
    ) -> None:
        """Read the file for the first time; settings given instead of one never change.

        Raises:
            TenantsFileError: the file is missing or broken; there is nothing to fall back on.
        """
        self._path = source if isinstance(source, Path) else None
        self._clock, self._recheck_s = clock, recheck_s
        self._looking = threading.Lock()
        self._last_error: str | None = None
        self._next_look_s = clock() + recheck_s
        # Taken before reading: a file replaced in between counts as changed at the next look.
        self._seen = _fingerprint(self._path)
        self._reading = _index(read_tenants_file(source) if isinstance(source, Path) else source)

    @property
    def keys_required(self) -> bool:
        return self._reading.settings.keys_required

    @property
    def last_error(self) -> str | None:
        """What is wrong with the file as it is now; None while it is what is in force."""
        return self._last_error

    @property
    def default_share(self) -> TenantShare:
        """What a tenant is entitled to that the file does not name."""
        return TenantShare(self._reading.settings.default_weight)

    @property
    def shares(self) -> Mapping[str, TenantShare]:
        """What every tenant that the file names is entitled to."""
        return {name: self.share_of(name) for name in self._reading.settings.tenants}

    def share_of(self, tenant: str) -> TenantShare:
        """What a tenant is entitled to, whether the file names it or not."""
        record = self._reading.settings.tenants.get(tenant)
        if record is None or record.weight is None:
            return self.default_share
        return TenantShare(record.weight)

    def tenant_of_key(self, text: str) -> str:
        """Whose key this is; the work does not grow with the number of keys.

        Raises:
            UnknownKeyError: nobody's.
            RevokedKeyError: it was taken back.
        """
        sent = parse_key(text)
        if sent.key_id not in self._reading.keys:
            raise UnknownKeyError
        tenant, kept = self._reading.keys[sent.key_id]
        # Revocation is told only to who holds the whole key: ids are no secret.
        if not is_secret_of(kept.hash, sent.secret):
            raise UnknownKeyError
        if kept.revoked is not None:
            raise RevokedKeyError(kept.id, kept.revoked)
        return tenant

    @property
    def is_due(self) -> bool:
        """Whether the file was last looked at long enough ago to look again."""
        return self._path is not None and self._clock() >= self._next_look_s

    def refresh(self) -> None:
        """Take up the file if it is due and has changed; a broken one changes only `last_error`."""
        # One look at a time: whoever comes meanwhile goes on with what is in force.
        if not self.is_due or not self._looking.acquire(blocking=False):
            return
        try:
            self._next_look_s = self._clock() + self._recheck_s
            self._look()
        finally:
            self._looking.release()

    def _look(self) -> None:
        assert self._path is not None
        seen = _fingerprint(self._path)  # before reading, as above
        if seen == self._seen:
            return
        self._seen = seen
        try:
            self._reading = _index(read_tenants_file(self._path))
        except TenantsFileError as error:
            self._last_error = f"{error}; the settings read before stay in force"
            logger.warning("%s", self._last_error)
        else:
            self._last_error = None
            logger.info("tenants file %s: taken up", self._path)


def _index(settings: TenantsFile) -> _Reading:
    keys = {key.id: (name, key) for name, tenant in settings.tenants.items() for key in tenant.keys}
    return _Reading(settings, keys)


def _fingerprint(path: Path | None) -> tuple[int, ...]:
    """Numbers that differ whenever the file does; none while there is no file to look at."""
    if path is None:
        return ()
    try:
        status = path.stat()
    except OSError:
        return ()
    # The change time too: `chmod` can mend a file, and leaves the modification time.
    return status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino
