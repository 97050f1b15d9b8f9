"""Reading serve_config.yaml: our application's ``args`` and the address to listen on.

Owns finding our application among a Serve configuration's and saying in one sentence what is
wrong with the file. Serve reads the same file itself for ``serve deploy``.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from app.errors import ConfigFileError, LiveSettingsError
from app.live_settings import with_live
from app.problems import describe
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
    application = _our_application(path, document)
    ours = _section(path, application, "args")
    if isinstance(ours.get("tenants_file"), str):
        # Relative to the file that says so: replicas run in folders of Ray's.
        ours["tenants_file"] = path.resolve().parent / ours["tenants_file"]
    args = parse_args(path, {**ours, **overrides})
    try:
        return ServeConfig(host, port, with_live(args, _router_config(application)))
    except LiveSettingsError as error:
        raise ConfigFileError(path, str(error)) from None


def parse_args(path: Path, raw: dict[str, Any]) -> AppArgs:
    """Checked settings.

    Raises:
        ConfigFileError: the first thing that is not allowed, by name.
    """
    try:
        return AppArgs.model_validate(raw)
    except ValidationError as error:
        raise ConfigFileError(path, describe(error, "args")) from None


def _our_application(path: Path, document: dict[str, Any]) -> dict[str, Any]:
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
    return ours[0]


def _router_config(application: dict[str, Any]) -> object:
    """What the file gives the router to change while it runs; Serve checks the rest of it."""
    deployments = application.get("deployments")
    for deployment in deployments if isinstance(deployments, list) else []:
        if isinstance(deployment, dict) and deployment.get("name") == "Router":
            return deployment.get("user_config")
    return {}


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
