"""Tenants: whom a request belongs to, and what each is entitled to.

Owns the settings in force and their re-reading; the file's format is `app.tenants_file`, the form
of a key `app.keys`. What a weight does to the order of requests, and how a limit is kept, is the
scheduler's.
"""

import hashlib
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from time import monotonic
from typing import Any

from app.errors import RevokedKeyError, TenantsFileError, UnknownKeyError
from app.keys import is_secret_of, parse_key
from app.settings import TenantSettings
from app.tenants_file import (
    UNLIMITED,
    Entitlement,
    KeyRecord,
    TenantRecord,
    TenantsFile,
    read_tenants_file,
)
from scheduler.shares import ServiceClass, TenantShare

DEFAULT_TENANT = "default"

logger = logging.getLogger(__name__)


def open_directory(
    path: Path | None,
    tenants: Mapping[str, TenantSettings],
    defaults: TenantSettings | None = None,
) -> "TenantDirectory":
    """The tenants of the file; where there is none, keys are off and these settings count.

    Raises:
        TenantsFileError: the file is missing or broken.
    """
    if path is not None:
        return TenantDirectory(path)
    stated = defaults.model_dump(exclude_none=True) if defaults else {}
    said = {
        "keys_required": False,
        "tenants": {
            name: TenantRecord.model_validate(tenant.model_dump())
            for name, tenant in tenants.items()
        },
        **{f"default_{name}": value for name, value in stated.items()},
    }
    return TenantDirectory(TenantsFile.model_validate(said))


def tenant_salt(tenant: str) -> str:
    """What marks a tenant's cached KV as its own, the same in every process.

    All are equally long: nothing a client adds behind one makes it another tenant's.
    """
    return hashlib.sha256(tenant.encode()).hexdigest()[:32]


@dataclass(frozen=True, slots=True)
class _Reading:
    """One whole reading of the file, with every share and every key at hand."""

    settings: TenantsFile
    default_share: TenantShare
    shares: Mapping[str, TenantShare]
    keys: Mapping[str, tuple[str, KeyRecord]]


class TenantDirectory:
    """Who may use the service, and what each is entitled to.

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
        return self._reading.default_share

    @property
    def shares(self) -> Mapping[str, TenantShare]:
        """What every tenant that the file names is entitled to."""
        return self._reading.shares

    def share_of(self, tenant: str) -> TenantShare:
        """What a tenant is entitled to, whether the file names it or not."""
        reading = self._reading
        return reading.shares.get(tenant, reading.default_share)

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
    default = TenantShare(
        weight=settings.default_weight,
        service_class=ServiceClass(settings.default_class),
        tokens_per_minute=_number(settings.default_tokens_per_minute),
        max_concurrent=_number(settings.default_max_concurrent),
    )
    shares = {name: _share(tenant, default) for name, tenant in settings.tenants.items()}
    return _Reading(settings, default, shares, keys)


def _share(stated: Entitlement, default: TenantShare) -> TenantShare:
    """What is stated of a tenant, and what is left out as by default."""
    changes: dict[str, Any] = {}
    if stated.weight is not None:
        changes["weight"] = stated.weight
    if stated.class_name is not None:
        changes["service_class"] = ServiceClass(stated.class_name)
    if stated.tokens_per_minute is not None:
        changes["tokens_per_minute"] = _number(stated.tokens_per_minute)
    if stated.max_concurrent is not None:
        changes["max_concurrent"] = _number(stated.max_concurrent)
    return replace(default, **changes)


def _number(limit: int | str) -> int | None:
    return None if limit == UNLIMITED else int(limit)


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
