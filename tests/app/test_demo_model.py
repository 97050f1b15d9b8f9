"""The demo model is the same for one seed, never touches what is not its own, and speaks."""

from pathlib import Path
from typing import Any

import pytest

from app.demo_model import DEFAULT_OUTPUT_TOKENS, MAX_TOKENS, DemoSize, write_demo_model
from app.errors import ModelFolderError, UsageError

# What vLLM's CPU attention can do (CPUAttentionBackend.get_supported_head_sizes).
CPU_HEAD_SIZES = {32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512}


def _contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def _repeats(tokens: list[int], longest: int) -> bool:
    return any(tokens[period:] == tokens[:-period] for period in range(1, longest + 1))


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_one_seed_gives_the_same_bytes(tmp_path: Path, size: DemoSize) -> None:
    """Two folders written with one size and seed are equal file by file."""
    write_demo_model(tmp_path / "a", size, seed=3)
    write_demo_model(tmp_path / "b", size, seed=3)
    assert _contents(tmp_path / "a") == _contents(tmp_path / "b")


def test_another_seed_gives_other_weights(tmp_path: Path) -> None:
    """The seed decides the weights and not the tokenizer."""
    write_demo_model(tmp_path / "a", seed=3)
    write_demo_model(tmp_path / "b", seed=4)
    a, b = _contents(tmp_path / "a"), _contents(tmp_path / "b")
    assert a["model.safetensors"] != b["model.safetensors"]
    assert a["tokenizer.json"] == b["tokenizer.json"]


def test_a_negative_seed_is_refused(tmp_path: Path) -> None:
    """A seed below zero gets a sentence, and nothing is written."""
    with pytest.raises(UsageError, match="seed -1 is not allowed: 0 or greater"):
        write_demo_model(tmp_path / "model", seed=-1)
    assert not list(tmp_path.iterdir())


def test_missing_parents_are_made_and_nothing_else_is_left(tmp_path: Path) -> None:
    """The folder is made with its parents; what was needed to write it is gone afterwards."""
    write_demo_model(tmp_path / "models" / "demo")
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["demo"]


def test_files_may_be_read_by_whoever_may_read_the_users_files(tmp_path: Path) -> None:
    """The files get the permissions that the user's other new files get."""
    ordinary = tmp_path / "ordinary"
    ordinary.touch()
    write_demo_model(tmp_path / "demo")
    modes = {file.stat().st_mode for file in (tmp_path / "demo").iterdir()}
    assert modes == {ordinary.stat().st_mode}


def test_an_empty_folder_is_used(tmp_path: Path) -> None:
    """A folder without files may be there already."""
    (tmp_path / "demo").mkdir()
    write_demo_model(tmp_path / "demo")
    assert (tmp_path / "demo" / "config.json").is_file()


def test_the_same_model_is_left_as_it_is(tmp_path: Path) -> None:
    """Writing a model that is there already writes nothing: a server may be reading it."""
    write_demo_model(tmp_path / "demo")
    before = {file: file.stat() for file in (tmp_path / "demo").iterdir()}
    write_demo_model(tmp_path / "demo")
    assert {file: file.stat() for file in (tmp_path / "demo").iterdir()} == before


def test_another_demo_model_is_replaced(tmp_path: Path) -> None:
    """A demo model of another size or seed makes room for the one asked for."""
    write_demo_model(tmp_path / "demo", "small", seed=1)
    write_demo_model(tmp_path / "demo", "tiny", seed=2)
    write_demo_model(tmp_path / "fresh", "tiny", seed=2)
    assert _contents(tmp_path / "demo") == _contents(tmp_path / "fresh")


def test_a_demo_model_with_a_file_missing_is_written_again(tmp_path: Path) -> None:
    """A demo model that lost a file is whole afterwards."""
    write_demo_model(tmp_path / "demo")
    whole = _contents(tmp_path / "demo")
    (tmp_path / "demo" / "model.safetensors").unlink()
    write_demo_model(tmp_path / "demo")
    assert _contents(tmp_path / "demo") == whole


@pytest.mark.parametrize(
    "files",
    [
        {"notes.txt": b"mine"},
        {"config.json": b'{"model_type": "llama"}'},
        {"config.json": b"no JSON"},
        {"config.json": b"[]", "model.safetensors": b""},
    ],
)
def test_a_folder_with_other_things_is_refused(tmp_path: Path, files: dict[str, bytes]) -> None:
    """A folder that holds anything but a demo model is named and left as it is."""
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelFolderError, match="is not empty and holds no demo model") as caught:
        write_demo_model(tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert _contents(tmp_path) == files


def test_a_demo_model_with_foreign_files_is_not_replaced(tmp_path: Path) -> None:
    """Somebody's own file beside a demo model is not deleted with it."""
    write_demo_model(tmp_path / "demo", seed=1)
    (tmp_path / "demo" / "notes.txt").write_text("mine")
    before = _contents(tmp_path / "demo")
    with pytest.raises(ModelFolderError):
        write_demo_model(tmp_path / "demo", seed=2)
    assert _contents(tmp_path / "demo") == before


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    """A path that is a file is named and left as it is."""
    (tmp_path / "demo").write_text("mine")
    with pytest.raises(ModelFolderError, match="is a file"):
        write_demo_model(tmp_path / "demo")
    assert (tmp_path / "demo").read_text() == "mine"


@pytest.mark.parametrize("size", ["tiny", "small"])
def test_transformers_reads_the_config(tmp_path: Path, size: DemoSize) -> None:
    """The checkpoint is a float32 Llama with heads that the CPU engine can do."""
    from transformers import AutoConfig, GenerationConfig

    write_demo_model(tmp_path / "demo", size)
    config = AutoConfig.from_pretrained(tmp_path / "demo")
    assert config.architectures == ["LlamaForCausalLM"]
    assert str(config.dtype) == "torch.float32"
    assert config.max_position_embeddings == MAX_TOKENS
    assert config.head_dim in CPU_HEAD_SIZES
    generation = GenerationConfig.from_pretrained(tmp_path / "demo")
    assert generation.max_new_tokens == DEFAULT_OUTPUT_TOKENS


def _greedy(folder: Path, prompts: list[str], num_tokens: int) -> list[list[int]]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = AutoModelForCausalLM.from_pretrained(folder)
    outputs = []
    for prompt in prompts:
        inputs = tokenizer(prompt, return_tensors="pt")
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=num_tokens)[0]
        outputs.append(tokens[inputs["input_ids"].shape[1] :].tolist())
    return outputs


def test_greedy_output_is_lively(tmp_path: Path) -> None:
    """Greedy output follows the prompt and goes on to its limit without falling into a loop."""
    write_demo_model(tmp_path / "demo")
    prompts = ["Hello", "Hello!", "What is the capital of France?", "1 2 3 4 5"]

    outputs = _greedy(tmp_path / "demo", prompts, num_tokens=200)

    assert [len(tokens) for tokens in outputs] == [200] * len(prompts)
    assert len({tuple(tokens) for tokens in outputs}) == len(prompts)
    for tokens in outputs:
        assert max(tokens) < 256  # no special token
        assert not _repeats(tokens[-100:], longest=50)
