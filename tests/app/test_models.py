"""Which model a name means."""

import json
from pathlib import Path

import pytest

from app.errors import ModelFolderError
from app.models import demo_model_folder, model_name, resolve_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "my-model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place for caches of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_folder_is_named_by_its_full_path(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines run elsewhere: a path relative to here, or to home, would not be found there."""
    monkeypatch.chdir(folder.parent)
    monkeypatch.setenv("HOME", str(folder.parent))
    names = (str(folder), "my-model", "./my-model", "~/my-model")

    assert {resolve_model(name) for name in names} == {str(folder)}
    assert {model_name(name) for name in names} == {"my-model"}


@pytest.mark.parametrize("name", ["gpt2", "meta-llama/Llama-3.1-8B"])
def test_a_hub_name_is_left_to_vllm(name: str) -> None:
    """Nothing is fetched here."""
    assert (resolve_model(name), model_name(name)) == (name, name)


@pytest.mark.parametrize("name", ["./nowhere", "/no/where", "~/nowhere", "a/b/c"])
def test_a_path_that_leads_nowhere_is_no_hub_name(name: str) -> None:
    """It was meant as a folder, and the error says that there is none."""
    with pytest.raises(ModelFolderError, match="there is no such folder"):
        resolve_model(name)


def test_a_folder_without_a_config_is_no_model(tmp_path: Path) -> None:
    """The error says what is missing."""
    with pytest.raises(ModelFolderError, match=r"has no config\.json"):
        resolve_model(str(tmp_path))


def test_demo_is_a_model_made_once(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Written to the cache on first use, and found there afterwards."""
    monkeypatch.chdir(tmp_path)
    made = Path(resolve_model("demo"))
    assert made.is_relative_to(cache)
    assert json.loads((made / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]

    written = (made / "model.safetensors").stat().st_mtime_ns
    assert resolve_model("demo") == str(demo_model_folder()) == str(made)
    assert (made / "model.safetensors").stat().st_mtime_ns == written
    assert model_name("demo") == "demo"


def test_a_folder_called_demo_is_meant_before_the_demo_model(
    folder: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lies there is what its owner means."""
    folder.rename(folder.parent / "demo")
    monkeypatch.chdir(folder.parent)

    assert resolve_model("demo") == str(folder.parent / "demo")
    assert not cache.exists()
