"""The demo model: a small Llama-shaped checkpoint from a seed, so that all runs without a download.

Owns the checkpoint's folder, shape and weights; the tokenizer is `app.demo_tokenizer`. The weights
are random, scaled so that greedy output neither loops nor ends by itself (what it says is letters
and blanks without meaning). One seed gives the same bytes everywhere; nothing here imports torch.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save

from app.demo_tokenizer import BOS, EOS, PAD, TOKEN_IDS, TURN_END, build_tokenizer, tokenizer_config
from app.errors import ModelFolderError, UsageError

DemoSize = Literal["tiny", "small"]

MAX_TOKENS = 8192
# A request that states no limit ends after these many tokens: the model itself never ends one.
DEFAULT_OUTPUT_TOKENS = 256

# In config.json, says which demo model a folder holds. Count up when the weights change.
_MARK = "fastswitch_demo"
_MARK_VERSION = 1
_FILES = {
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
}

# Gains over a projection that keeps its input's scale. Found by looking at outputs: with 1
# everywhere greedy output is soon one token for ever, and attention has to be sharp for each step
# to depend on what came before.
_ATTENTION_GAIN = 2.5
_OUTPUT_GAIN = 1.5

# Logits added to the random ones, whose deviation is 1; a later line overrules an earlier one.
_NEVER = -30.0
_ADDED_LOGITS: tuple[tuple[Iterable[str], float], ...] = (
    (tuple(map(chr, range(33, 127))), -1.5),  # what can be printed
    ("abcdefghijklmnopqrstuvwxyz", 0.0),
    # A grammar (structured output, a tool call) soon comes to its end: closing a string, going on
    # to the next field and ending the turn are each likelier than what else it would allow there.
    ('"', 0.3),
    ("{}[]:,", -0.25),
    ("Ġ", -0.8),  # the blank's token
    ((TURN_END,), -9.0),
    ("<", -12.0),
)

Tensor = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class _Shape:
    """Sizes as Llama names them. ``final_rms`` is the last hidden state's, measured."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int  # one that vLLM's CPU attention has: 32, 64, 80, ...
    mlp: int
    final_rms: float


_SHAPES: dict[DemoSize, _Shape] = {
    "tiny": _Shape(2, 64, heads=4, kv_heads=2, head_dim=32, mlp=128, final_rms=2.3),
    "small": _Shape(8, 512, heads=8, kv_heads=4, head_dim=64, mlp=1024, final_rms=4.3),
}


def write_demo_model(folder: Path, size: DemoSize = "tiny", seed: int = 0) -> None:
    """Write the checkpoint to ``folder``, whole or not at all.

    A folder that holds this very model is left as it is (a server may be reading it); one that
    holds another demo model is replaced.

    Raises:
        UsageError: the seed is negative.
        ModelFolderError: the folder is a file or holds anything else. It is left as it is.
    """
    if seed < 0:
        raise UsageError(f"seed {seed} is not allowed: 0 or greater")
    folder = folder.resolve()
    config = _config(size, seed)
    if _holds(folder, config):
        return
    _check_free(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, prefix=".demo-model-") as scratch:
        new = Path(scratch, "new")
        new.mkdir()
        _write_files(new, config, _SHAPES[size], seed)
        if folder.exists():
            folder.rename(Path(scratch, "old"))
        new.rename(folder)


def _holds(folder: Path, config: dict[str, Any]) -> bool:
    return _demo_config(folder) == config and _names_in(folder) >= _FILES


def _check_free(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ModelFolderError(folder, "is a file; name a new or an empty folder")
    names = _names_in(folder)
    is_demo = _demo_config(folder) is not None and names <= _FILES
    if names and not is_demo:
        problem = "is not empty and holds no demo model; name a new or an empty folder"
        raise ModelFolderError(folder, problem)


def _names_in(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()}


def _demo_config(folder: Path) -> dict[str, Any] | None:
    """The config of the demo model in ``folder``, if that is what it holds."""
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return None
    return config if isinstance(config, dict) and _MARK in config else None


def _write_files(folder: Path, config: dict[str, Any], shape: _Shape, seed: int) -> None:
    generation = {
        "eos_token_id": [TOKEN_IDS[EOS], TOKEN_IDS[TURN_END]],
        "pad_token_id": TOKEN_IDS[PAD],
        "max_new_tokens": DEFAULT_OUTPUT_TOKENS,
    }
    _write_json(folder / "config.json", config)
    _write_json(folder / "generation_config.json", generation)
    _write_json(folder / "tokenizer_config.json", tokenizer_config(MAX_TOKENS))
    build_tokenizer().save(str(folder / "tokenizer.json"))
    weights = dict(_weights(shape, np.random.default_rng(seed)))
    # Not `save_file`: that makes a file which only its owner may read.
    (folder / "model.safetensors").write_bytes(save(weights, metadata={"format": "pt"}))


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")


def _config(size: DemoSize, seed: int) -> dict[str, Any]:
    shape = _SHAPES[size]
    return {
        _MARK: {"version": _MARK_VERSION, "size": size, "seed": seed},
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "dtype": "float32",
        "vocab_size": len(TOKEN_IDS),
        "max_position_embeddings": MAX_TOKENS,
        "num_hidden_layers": shape.layers,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.mlp,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        "tie_word_embeddings": False,
        "bos_token_id": TOKEN_IDS[BOS],
        "eos_token_id": TOKEN_IDS[TURN_END],
        "pad_token_id": TOKEN_IDS[PAD],
    }


def _weights(shape: _Shape, rng: np.random.Generator) -> Iterator[tuple[str, Tensor]]:
    """All tensors by their Llama names.

    Llama has no bias, so the first element of the hidden state carries one: 1 in every embedding,
    untouched by the layers, and met by the language head with each token's added logit.
    """
    embedding = rng.standard_normal((len(TOKEN_IDS), shape.hidden), dtype=np.float32)
    embedding[:, 0] = 1
    yield "model.embed_tokens.weight", embedding
    for layer in range(shape.layers):
        for name, tensor in _layer_weights(shape, rng):
            yield f"model.layers.{layer}.{name}.weight", tensor
    yield "model.norm.weight", np.ones(shape.hidden, dtype=np.float32)
    head = _projection(rng, shape.hidden, len(TOKEN_IDS))
    head[:, 0] = _added_logits() * shape.final_rms
    yield "lm_head.weight", head


def _layer_weights(shape: _Shape, rng: np.random.Generator) -> Iterator[tuple[str, Tensor]]:
    query, key = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    yield "input_layernorm", np.ones(shape.hidden, dtype=np.float32)
    yield "self_attn.q_proj", _projection(rng, shape.hidden, query, _ATTENTION_GAIN)
    yield "self_attn.k_proj", _projection(rng, shape.hidden, key, _ATTENTION_GAIN)
    yield "self_attn.v_proj", _projection(rng, shape.hidden, key)
    yield "self_attn.o_proj", _residual_projection(rng, query, shape.hidden)
    yield "post_attention_layernorm", np.ones(shape.hidden, dtype=np.float32)
    yield "mlp.gate_proj", _projection(rng, shape.hidden, shape.mlp)
    yield "mlp.up_proj", _projection(rng, shape.hidden, shape.mlp)
    yield "mlp.down_proj", _residual_projection(rng, shape.mlp, shape.hidden)


def _projection(rng: np.random.Generator, inputs: int, outputs: int, gain: float = 1.0) -> Tensor:
    """A random matrix whose outputs deviate ``gain`` times as much as its inputs."""
    scale = np.float32(gain / inputs**0.5)
    return rng.standard_normal((outputs, inputs), dtype=np.float32) * scale


def _residual_projection(rng: np.random.Generator, inputs: int, outputs: int) -> Tensor:
    tensor = _projection(rng, inputs, outputs, _OUTPUT_GAIN)
    tensor[0] = 0  # what it writes is added to the hidden state, whose first element must stay
    return tensor


def _added_logits() -> Tensor:
    logits = np.full(len(TOKEN_IDS), _NEVER, dtype=np.float32)
    for tokens, logit in _ADDED_LOGITS:
        logits[[TOKEN_IDS[token] for token in tokens]] = logit
    return logits
