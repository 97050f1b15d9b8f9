"""The tenants file: what an operator may write in it, and how it is read and changed.

Owns the file's format, the sentences that say what is wrong in one, and changing it such that
nobody reads half a file or loses another's change. Who is let in by it is `app.tenants`.

    keys_required: true        # false: the header X-Tenant names the tenant
    default_weight: 1.0        # of tenants that have no weight of their own, named here or not;
    default_class: interactive           # so too the other defaults
    default_tokens_per_minute: unlimited
    default_max_concurrent: 100
    tenants:
      alice:
        weight: 2.0
        class: batch                     # nobody waits for its answers; else interactive
        tokens_per_minute: 100000        # prompt and output; past it 429
        max_concurrent: unlimited        # requests at once; past it 429
        keys:
        - id: 3f2a90c4d1e8
          hash: sha256:...     # of the key's secret; the key itself is nowhere
          created: 2026-05-01 09:30:00+00:00
          revoked: 2026-06-01 12:00:00+00:00     # only where it was taken back
"""

import fcntl
import os
import re
import tempfile
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import yaml
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)

from app.errors import (
    LimitError,
    TenantNameError,
    TenantsFileError,
    UnknownKeyIdError,
    WeightError,
)
from app.keys import KEY_HASH_PATTERN, KEY_ID_PATTERN

ALLOWED_NAMES = "1 to 64 letters, digits or any of . _ @ -, starting with a letter or digit"
LOWEST_WEIGHT, HIGHEST_WEIGHT = 0.001, 1000.0
LOWEST_TOKENS_PER_MINUTE = 2  # a token of prompt and one of output: less would let nothing in
HIGHEST_LIMIT = 10**12
UNLIMITED: Final = "unlimited"  # also where the default is a limit

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_HEADING = """\
# Tenants of FastSwitch Serve. A running server takes up changes within seconds; a change that
# breaks the file is reported and leaves the old settings in force.
# `fastswitch keys` rewrites this file: comments other than these are lost then.
"""


def check_tenant_name(name: str) -> str:
    """The name itself.

    Raises:
        TenantNameError: it is not a name that a tenant may have.
    """
    if _NAME.fullmatch(name) is None:
        raise TenantNameError(name, ALLOWED_NAMES)
    return name


def check_weight(weight: float) -> float:
    """The weight itself.

    Raises:
        WeightError: it is zero, negative, not a number, or so far off that shares lose precision.
    """
    if not LOWEST_WEIGHT <= weight <= HIGHEST_WEIGHT:
        raise WeightError(weight, LOWEST_WEIGHT, HIGHEST_WEIGHT)
    return weight


def _limit_from(lowest: int) -> BeforeValidator:
    def check(value: object) -> object:
        is_number = isinstance(value, int) and not isinstance(value, bool)
        if value == UNLIMITED or (is_number and value in range(lowest, HIGHEST_LIMIT + 1)):
            return value
        raise LimitError(str(value)[:80], lowest, HIGHEST_LIMIT)

    return BeforeValidator(check)


TenantName = Annotated[str, AfterValidator(check_tenant_name)]
Weight = Annotated[float, AfterValidator(check_weight)]
ClassName = Literal["interactive", "batch"]
TokensPerMinute = Annotated[int | Literal["unlimited"], _limit_from(LOWEST_TOKENS_PER_MINUTE)]
MaxConcurrent = Annotated[int | Literal["unlimited"], _limit_from(1)]


class _Record(BaseModel):
    """Part of the file: knows all its fields, never changes, converts nothing silently."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, serialize_by_alias=True)


class Entitlement(_Record):
    """What is said of one tenant's share and limits. What is left out is the default's."""

    weight: Weight | None = None
    class_name: ClassName | None = Field(default=None, alias="class")
    tokens_per_minute: TokensPerMinute | None = None
    max_concurrent: MaxConcurrent | None = None


class KeyRecord(_Record):
    """One key of one tenant, as it is kept."""

    id: str = Field(pattern=KEY_ID_PATTERN)
    hash: str = Field(pattern=KEY_HASH_PATTERN)
    created: AwareDatetime
    revoked: AwareDatetime | None = None


class TenantRecord(Entitlement):
    """What the file says about one tenant."""

    # A list in YAML; strict mode would want a tuple there.
    keys: tuple[KeyRecord, ...] = Field(default=(), strict=False)


class TenantsFile(_Record):
    """All that the file says. Keys are required unless it says otherwise."""

    keys_required: bool = True
    default_weight: Weight = 1.0
    default_class: ClassName = "interactive"
    default_tokens_per_minute: TokensPerMinute = UNLIMITED
    default_max_concurrent: MaxConcurrent = UNLIMITED
    tenants: dict[TenantName, TenantRecord] = {}

    @model_validator(mode="after")
    def _check_key_ids(self) -> "TenantsFile":
        owners: dict[str, str] = {}
        for name, tenant in self.tenants.items():
            for key in tenant.keys:
                if key.id in owners:
                    raise ValueError(
                        f"key id {key.id} is given twice, to {owners[key.id]} and to {name}; "
                        "every key has its own id"
                    )
                owners[key.id] = name
        return self


def read_tenants_file(path: Path) -> TenantsFile:
    """What the file says now.

    Raises:
        TenantsFileError: it cannot be read, or says something that is not allowed.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise TenantsFileError(
            path, f"no such file; `fastswitch keys make TENANT --file {path}` writes one"
        ) from None
    except OSError as error:
        raise TenantsFileError(path, f"cannot be read: {error.strerror}") from error
    return parse_tenants(path, content)


def parse_tenants(path: Path, content: bytes) -> TenantsFile:
    """What this content says; ``path`` is only for the message.

    Raises:
        TenantsFileError: the content is not YAML, or says something that is not allowed.
    """
    try:
        raw = _load_yaml(content)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        raise TenantsFileError(path, f"{line}{error.problem or error.context}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())  # PyYAML's own is several lines
        raise TenantsFileError(path, f"is not readable as YAML: {reason}") from error
    if raw is None:
        # Also what a reader sees while an editor writes in place: never "everything is allowed".
        raise TenantsFileError(path, f"is empty; allowed fields: {_fields_of(TenantsFile)}")
    try:
        return TenantsFile.model_validate(raw)
    except ValidationError as error:
        raise TenantsFileError(path, _first_problem(error)) from error


def add_key(
    settings: TenantsFile, tenant: str, key: KeyRecord, weight: float | None = None
) -> TenantsFile:
    """The settings with one more key; a new tenant is added, and a weight given is set.

    Raises:
        TenantNameError, WeightError: that name or weight may not stand in the file.
    """
    check_tenant_name(tenant)
    if weight is not None:
        check_weight(weight)
    before = settings.tenants.get(tenant, TenantRecord())
    after = before.model_copy(
        update={
            "weight": before.weight if weight is None else weight,
            "keys": (*before.keys, key),
        }
    )
    return settings.model_copy(update={"tenants": {**settings.tenants, tenant: after}})


def revoke_key(settings: TenantsFile, key_id: str, now: datetime) -> TenantsFile:
    """The settings with this key taken back; one that was taken back before keeps its date.

    Raises:
        UnknownKeyIdError: no tenant has a key of this id.
    """
    for name, tenant in settings.tenants.items():
        if any(key.id == key_id for key in tenant.keys):
            keys = tuple(
                key.model_copy(update={"revoked": key.revoked or now}) if key.id == key_id else key
                for key in tenant.keys
            )
            after = tenant.model_copy(update={"keys": keys})
            return settings.model_copy(update={"tenants": {**settings.tenants, name: after}})
    raise UnknownKeyIdError(key_id)


def edit_tenants_file(path: Path, change: Callable[[TenantsFile], TenantsFile]) -> TenantsFile:
    """Change the file, or write the first one, as one step that no other edit comes between.

    Readers see the file before or after the change, never a part. Only its owner may read it.

    Raises:
        TenantsFileError: the file cannot be read or written, or is broken. It stays as it was.
    """
    # A link (as a mounted secret is) stays a link: what it points to is replaced.
    path = path.resolve()
    try:
        with _locked(path.parent):
            before = read_tenants_file(path) if path.exists() else TenantsFile()
            after = change(before)
            _replace(path, after)
    except OSError as error:
        raise TenantsFileError(path, f"cannot be written: {error.strerror}") from error
    return after


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    # The folder, not the file: every edit puts another file in the old one's place, and a lock on
    # the old one would hold nobody back. The system drops the lock of a process that dies.
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, settings: TenantsFile) -> None:
    text = _HEADING + yaml.safe_dump(settings.model_dump(exclude_none=True), sort_keys=False)
    descriptor, draft = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            if path.exists():
                # An edit by root must not take the file from the user whom the server runs as.
                owner = path.stat()
                os.fchown(file.fileno(), owner.st_uid, owner.st_gid)
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(draft).replace(path)
    except BaseException:
        Path(draft).unlink()
        raise


class _UniqueFieldLoader(yaml.CSafeLoader):
    """Refuses a field given twice, where YAML would silently keep the last, keys and all."""

    def construct_mapping(
        self,
        node: yaml.MappingNode,
        deep: bool = False,  # noqa: FBT001, FBT002  (the signature is PyYAML's)
    ) -> dict[Hashable, Any]:
        seen = set()
        for field_node, _ in node.value:
            if field_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{field_node.value!r} is given twice",
                    problem_mark=field_node.start_mark,
                )
            seen.add(field_node.value)
        return super().construct_mapping(node, deep=deep)


def _construct_time(loader: Any, node: Any) -> Any:
    return loader.construct_yaml_timestamp(node)


# Loaders share their constructors, and a library that vLLM loads for structured output has all of
# them leave times as text.
_UniqueFieldLoader.add_constructor("tag:yaml.org,2002:timestamp", _construct_time)


def _load_yaml(content: bytes) -> object:
    loader = _UniqueFieldLoader(content)
    try:
        return loader.get_single_data()
    finally:
        loader.dispose()


def _first_problem(error: ValidationError) -> str:
    """The first thing wrong, as one sentence that names the field and what is allowed."""
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"] if part != "[key]") or "the file"
    match first["type"]:
        case "extra_forbidden":
            allowed = _fields_of(_record_at(first["loc"]))
            return f"{where} is no known field; allowed here: {allowed}"
        case "missing":
            return f"{where} is missing"
        case "value_error":
            reason = str(first["ctx"]["error"])
            return f"{where}: {reason}" if first["loc"] else reason
        case "model_type" | "dict_type":
            return f"{where} holds no fields, where `name: value` lines should stand"
        case "string_type" if first["loc"][-1] == "[key]":
            return f"{where} is not text: put the tenant's name in quotes"
        case _:
            # Pydantic says "Input should ..." or "String should ...".
            _, _, wanted = first["msg"].partition(" should ")
            return f"{where} is {str(first['input'])[:80]!r}, but it should {wanted}"


def _record_at(location: tuple[int | str, ...]) -> type[_Record]:
    # tenants.alice.keys.0.id: a field's depth says whose it is.
    by_depth: Mapping[int, type[_Record]] = {1: TenantsFile, 3: TenantRecord, 5: KeyRecord}
    return by_depth[len(location)]


def _fields_of(record: type[_Record]) -> str:
    return ", ".join(field.alias or name for name, field in record.model_fields.items())
