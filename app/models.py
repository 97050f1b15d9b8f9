"""Which model a name means: a folder, a hub name, or the demo model, made on first use."""

import os
from pathlib import Path

from app.demo_model import DemoSize, write_demo_model
from app.errors import ModelFolderError
from app.settings import DEMO_MODEL

DEMO_SIZE: DemoSize = "small"


def resolve_model(name: str) -> str:
    """A folder that holds a model, or a hub name left to vLLM to fetch.

    Raises:
        ModelFolderError: the folder is not there or holds no model.
    """
    if name == DEMO_MODEL and not Path(name).exists():
        return str(demo_model_folder())
    folder = Path(name).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ModelFolderError(folder, "has no config.json, so it is not a model's folder")
        return str(folder.resolve())
    # A hub name is `name` or `owner/name`; anything else was meant as a path.
    if name.startswith((".", "/", "~")) or name.count("/") > 1:
        raise ModelFolderError(folder, "there is no such folder")
    return name


def model_name(name: str) -> str:
    """What clients call the model where nothing else is said: its folder's or its hub name."""
    folder = Path(name).expanduser()
    return folder.resolve().name if folder.is_dir() else name


def demo_model_folder() -> Path:
    """The demo model, written where caches go if it is not there yet."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "fastswitch" / f"demo-{DEMO_SIZE}"
    if not (folder / "config.json").is_file():
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_demo_model(folder, DEMO_SIZE)
    return folder
