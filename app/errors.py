"""Errors of the application: its settings, its tenants and keys, its command line.

AppError
├── UsageError             what was asked for cannot be done: the caller must ask otherwise
│   ├── TenantNameError    a tenant's name is not one
│   ├── WeightError        a tenant's weight is no number to compute shares with
│   ├── LimitError         a tenant's limit is no number that a limit can be
│   └── UnknownKeyIdError  no key has this id
├── TenantsFileError       the tenants file cannot be read, written or understood
├── KeyRefusedError        a request's API key opens nothing
│   ├── MissingKeyError    keys are required and none was sent
│   ├── UnknownKeyError    no tenant has this key
│   └── RevokedKeyError    the key was taken back
├── ConfigFileError        serve_config.yaml cannot be read or holds what is not allowed
├── LiveSettingsError      settings for an application that runs hold what is not allowed
├── PortInUseError         the port to serve on is taken
├── AddressError           the address to serve on is none of this machine's
├── TooLittleMemoryError   the engines would not fit
├── RayStartError          Ray could not be started here
├── DeployFailedError      Serve could not bring the application up
├── ServiceLostError       the application was up, stopped serving and was not mended
├── ServiceAwayError       a running service was asked and did not answer
├── ServiceRefusesError    what answered is no service of ours, or wants a key
├── DashboardFolderError   dashboards cannot be written to a folder
├── ModelFolderError       a model cannot be written to, or served from, a folder
└── WrongVersionError      an installed package is not the one this code is written for

Every message is one sentence for the person who can act on it; the command line prints it as it is.
"""

from datetime import datetime
from pathlib import Path


class AppError(Exception):
    """Base of everything that a person running or calling the application can put right."""


class UsageError(AppError, ValueError):
    """What was asked for cannot be done, whatever the state of the machine.

    Also a ``ValueError``, so that a field of a settings file can be checked by raising one.
    """


class TenantNameError(UsageError):
    """A tenant's name has characters or a length that names may not have."""

    def __init__(self, name: str, allowed: str) -> None:
        super().__init__(name, allowed)
        self.name, self.allowed = name, allowed

    def __str__(self) -> str:
        # Cut: the name can come from a header, and this goes back in the answer.
        return f"tenant name {self.name[:80]!r} is not allowed: {self.allowed}"


class WeightError(UsageError):
    """A tenant's weight is not a number that shares can be computed with."""

    def __init__(self, weight: float, lowest: float, highest: float) -> None:
        super().__init__(weight, lowest, highest)
        self.weight, self.lowest, self.highest = weight, lowest, highest

    def __str__(self) -> str:
        return f"weight {self.weight:g} is not allowed: from {self.lowest:g} to {self.highest:g}"


class LimitError(UsageError):
    """A tenant's limit is not a whole number, or would let no request in."""

    def __init__(self, value: str, lowest: int, highest: int) -> None:
        super().__init__(value, lowest, highest)
        self.value, self.lowest, self.highest = value, lowest, highest

    def __str__(self) -> str:
        return (
            f"{self.value!r} is not allowed: a whole number from {self.lowest} to "
            f"{self.highest}, or 'unlimited'"
        )


class UnknownKeyIdError(UsageError):
    """A key is named by an id that the tenants file does not have."""

    def __init__(self, key_id: str) -> None:
        super().__init__(key_id)
        self.key_id = key_id

    def __str__(self) -> str:
        return f"no key has the id {self.key_id!r}: `fastswitch keys list` shows the ids"


class TenantsFileError(AppError):
    """The tenants file cannot be read, written or understood."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(path, problem)
        self.path, self.problem = path, problem

    def __str__(self) -> str:
        return f"tenants file {self.path}: {self.problem}"


class KeyRefusedError(AppError):
    """A request's API key opens nothing."""


class MissingKeyError(KeyRefusedError):
    """Keys are required and the request has none."""

    def __str__(self) -> str:
        return "no API key: send it as `Authorization: Bearer KEY` (or `x-api-key: KEY`)"


class UnknownKeyError(KeyRefusedError):
    """The key sent is nobody's. Its text is left out: a mistyped key is still nearly a key."""

    def __str__(self) -> str:
        return "this API key is not known: check that it was copied whole (fs-...-...)"


class RevokedKeyError(KeyRefusedError):
    """The key was right until it was taken back."""

    def __init__(self, key_id: str, revoked: datetime) -> None:
        super().__init__(key_id, revoked)
        self.key_id, self.revoked = key_id, revoked

    def __str__(self) -> str:
        return f"API key {self.key_id} was revoked on {self.revoked:%Y-%m-%d}: ask for a new one"


class ModelFolderError(AppError):
    """A model cannot be written to, or served from, a folder."""

    def __init__(self, folder: Path, problem: str) -> None:
        super().__init__(folder, problem)
        self.folder, self.problem = folder, problem

    def __str__(self) -> str:
        return f"model folder {self.folder}: {self.problem}"


class DashboardFolderError(AppError):
    """Dashboards cannot be written to a folder."""

    def __init__(self, folder: Path, problem: str) -> None:
        super().__init__(folder, problem)
        self.folder, self.problem = folder, problem

    def __str__(self) -> str:
        return f"dashboards cannot be written to {self.folder}: {self.problem}"


class WrongVersionError(AppError):
    """An installed package is missing, or is not the one this code is written for."""

    def __init__(self, package: str, found: str, wanted: str, fix: str) -> None:
        super().__init__(package, found, wanted, fix)
        self.package, self.found, self.wanted, self.fix = package, found, wanted, fix

    def __str__(self) -> str:
        return (
            f"{self.package}: {self.wanted} wanted, {self.found} installed; to mend it: {self.fix}"
        )


class ConfigFileError(AppError):
    """serve_config.yaml cannot be read or holds a setting that is not allowed."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(path, problem)
        self.path, self.problem = path, problem

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


class LiveSettingsError(AppError):
    """Settings that are to change while the application runs hold what is not allowed."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem

    def __str__(self) -> str:
        return self.problem


class PortInUseError(AppError):
    """The port to serve on is taken."""

    def __init__(self, host: str, port: int, holder: str | None) -> None:
        super().__init__(host, port, holder)
        self.host, self.port, self.holder = host, port, holder

    def __str__(self) -> str:
        by = f" by {self.holder}" if self.holder else ""
        return f"port {self.port} of {self.host} is in use{by}: stop that or choose another --port"


class AddressError(AppError):
    """The address to serve on cannot be listened on by this machine."""

    def __init__(self, host: str, port: int, problem: str) -> None:
        super().__init__(host, port, problem)
        self.host, self.port, self.problem = host, port, problem

    def __str__(self) -> str:
        return f"cannot listen on {self.host}, port {self.port}: {self.problem}"


class TooLittleMemoryError(AppError):
    """The engines would need more memory than the machine has free."""

    def __init__(self, wanted_gib: float, available_gib: float, replicas: int) -> None:
        super().__init__(wanted_gib, available_gib, replicas)
        self.wanted_gib, self.available_gib, self.replicas = wanted_gib, available_gib, replicas

    def __str__(self) -> str:
        return (
            f"too little memory: {self.replicas} engines need {self.wanted_gib:.1f} GiB before any "
            f"model, {self.available_gib:.1f} GiB are free; lower replicas, kv_cache_gib or "
            "host_kv_gib"
        )


class RayStartError(AppError):
    """Ray could not be started on this machine."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"Ray did not start: {self.reason}"


class DeployFailedError(AppError):
    """Serve could not bring the application up."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"the application did not start: {self.reason}"


class ServiceLostError(AppError):
    """The application was up and has not served for too long."""

    def __init__(self, problem: str, lost_s: float) -> None:
        super().__init__(problem, lost_s)
        self.problem, self.lost_s = problem, lost_s

    def __str__(self) -> str:
        return f"the application has not served for {self.lost_s:.0f} s: {self.problem}"


class ServiceAwayError(AppError):
    """A service that should be running does not answer now; it may the next time."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url, self.reason = url, reason

    def __str__(self) -> str:
        return f"{self.url} is away: {self.reason}"


class ServiceRefusesError(AppError):
    """What answers at an address will not say what it was asked, now or later."""

    def __init__(self, url: str, reason: str) -> None:
        super().__init__(url, reason)
        self.url, self.reason = url, reason

    def __str__(self) -> str:
        return f"{self.url} cannot be watched: {self.reason}"
