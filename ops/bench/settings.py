"""The settings under test: those that `fastswitch serve` takes from serve_config.yaml."""

from typing import Any

from app.cli.serve import DEFAULT_CONFIG
from app.config_file import read_serve_config
from app.settings import AppArgs


def read_settings(**given: Any) -> AppArgs:
    """The settings with those in ``given`` that are not ``None`` in the place of the file's."""
    overrides = {name: value for name, value in given.items() if value is not None}
    return read_serve_config(DEFAULT_CONFIG, overrides).args
