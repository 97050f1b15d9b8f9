"""Reading serve_config.yaml: our application's ``args`` and the address to listen on.

Owns finding our application among a Serve configuration's and saying in one sentence what is
wrong with the file. Serve reads the same file itself for ``serve deploy``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

import yaml
from pydantic import ValidationError

from app.errors import ConfigFileError
from app.settings import AppArgs

IMPORT_PATH = "app.build:build"


@dataclass(frozen=True, slots=True)
class ServeConfig:
    """What ``fastswitch serve`` takes from the file."""

    host: str
    port: int
    args: AppArgs


def read_serve_config(path: Path, overrides: dict[str, Any]) -> ServeConfig:
    """The file's settings with ``overrides`` (of ``args``) in the place of its own.

    Raises:
        ConfigFileError: it cannot be read, has no such application, or a setting is not allowed.
    """
    document = _load(path)
    http = _section(path, document, "http_options")
    host, port = http.get("host", "127.0.0.1"), http.get("port", 8000)
    if not isinstance(host, str) or not isinstance(port, int):
        raise ConfigFileError(path, "http_options: host is a name or address, port a whole number")
    ours = _our_args(path, document)
    if isinstance(ours.get("tenants_file"), str):
        # Relative to the file that says so: replicas run in folders of Ray's.
        ours["tenants_file"] = path.resolve().parent / ours["tenants_file"]
    return ServeConfig(host, port, parse_args(path, {**ours, **overrides}))


def parse_args(path: Path, raw: dict[str, Any]) -> AppArgs:
    """Checked settings.

    Raises:
        ConfigFileError: the first thing that is not allowed, by name.
    """
    try:
        return AppArgs.model_validate(raw)
    except ValidationError as error:
        raise ConfigFileError(path, describe(error)) from None


def describe(error: ValidationError) -> str:
    """The first problem as one sentence: where it is, what it was, what is allowed."""
    sentence = _first_problem(error)
    # Names and values come from the file: a line break in one must not break the sentence.
    return "".join(sign if sign.isprintable() else "?" for sign in sentence)


def _first_problem(error: ValidationError) -> str:
    problem = error.errors(include_url=False)[0]
    where = ".".join(["args", *(str(part) for part in problem["loc"])])
    if problem["type"] == "extra_forbidden":
        return (
            f"{where}: there is no such setting; allowed are {', '.join(_fields(problem['loc']))}"
        )
    message = problem["msg"].removeprefix("Value error, ")
    value = "" if isinstance(problem["input"], dict) else f" (given: {problem['input']!r})"
    return f"{where}: {message[:1].lower()}{message[1:]}{value}"


def _fields(location: tuple[int | str, ...]) -> list[str]:
    """The settings there are where an unknown one was found."""
    model: Any = AppArgs
    for part in location[:-1]:
        if get_origin(model) is dict:
            _, model = get_args(model)  # the part is a tenant's name
        else:
            model = model.model_fields[part].annotation
    return sorted(field.alias or name for name, field in model.model_fields.items())


def _our_args(path: Path, document: dict[str, Any]) -> dict[str, Any]:
    applications = document.get("applications")
    if not isinstance(applications, list):
        raise ConfigFileError(path, "applications: a list is needed")
    ours = [
        entry
        for entry in applications
        if isinstance(entry, dict) and entry.get("import_path") == IMPORT_PATH
    ]
    if len(ours) != 1:
        raise ConfigFileError(
            path, f"applications: one with import_path {IMPORT_PATH} is needed, found {len(ours)}"
        )
    return _section(path, ours[0], "args")


def _load(path: Path) -> dict[str, Any]:
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigFileError(path, f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigFileError(path, "is not UTF-8 text") from None
    except yaml.YAMLError as error:
        raise ConfigFileError(path, f"is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(document, dict):
        raise ConfigFileError(path, "is not a Serve configuration: it has no fields")
    return document


def _section(path: Path, document: dict[str, Any], name: str) -> dict[str, Any]:
    section = document.get(name) or {}
    if not isinstance(section, dict):
        raise ConfigFileError(path, f"{name} has no fields")
    return section
