"""A model's folder: what stands in it, found without loading any of it."""

import json
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".gguf"})
_TOKENIZER_FILES = frozenset(
    {"tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "tekken.json"}
)


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """``problem`` says why the config cannot be used, empty where it can."""

    path: Path
    problem: str
    architectures: tuple[str, ...]
    weights_bytes: int
    has_tokenizer: bool


def read_model_folder(path: Path) -> ModelFolder:
    """What stands in the folder, also where it is no model's."""
    architectures, problem = _architectures(path)
    files: list[Path] = []
    with suppress(OSError):  # then the config could not be read either, and `problem` says so
        files = [file for file in path.iterdir() if file.is_file()]
    return ModelFolder(
        path=path,
        problem=problem,
        architectures=architectures,
        weights_bytes=sum(file.stat().st_size for file in files if file.suffix in _WEIGHT_SUFFIXES),
        has_tokenizer=any(file.name in _TOKENIZER_FILES for file in files),
    )


def _architectures(path: Path) -> tuple[tuple[str, ...], str]:
    """The model classes that config.json names, and what is wrong with it."""
    try:
        config = json.loads((path / "config.json").read_bytes())
    except FileNotFoundError:
        return (), "has no config.json" if path.is_dir() else "there is no such folder"
    except OSError as error:
        return (), f"config.json cannot be read: {error.strerror}"
    except ValueError as error:
        return (), f"config.json is not JSON: {error}"
    named = config.get("architectures") if isinstance(config, dict) else None
    if not isinstance(named, list) or not named:
        return (), "config.json names no architectures"
    return tuple(map(str, named)), ""
