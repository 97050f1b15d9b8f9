"""Which engines may go on with each other's KV."""

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from kv.vllm_identity import key_bytes, kv_facts, why_not_shareable


def config(**changes: Any) -> Any:
    """As much of an engine's configuration as is looked at."""
    values: dict[str, Any] = {
        "model": "owner/name",
        "commit": "c0ffee",
        "dtype": "float32",
        "block_size": 32,
        "algorithm": "sha256",
        "has_prefix_cache": True,
        "lora": None,
        "rest": "all the rest",
        "num_workers": 1,
        **changes,
    }
    return SimpleNamespace(
        model_config=SimpleNamespace(
            model=values["model"],
            revision=None,
            dtype=values["dtype"],
            hf_config=SimpleNamespace(_commit_hash=values["commit"]),
        ),
        cache_config=SimpleNamespace(
            block_size=values["block_size"],
            cache_dtype="auto",
            enable_prefix_caching=values["has_prefix_cache"],
            prefix_caching_hash_algo=values["algorithm"],
        ),
        parallel_config=SimpleNamespace(tensor_parallel_size=values["num_workers"]),
        lora_config=values["lora"],
        compute_hash=lambda: values["rest"],
    )


def test_engines_that_are_alike_may_follow_each_other() -> None:
    """Equal facts, and no reason against it."""
    assert kv_facts(config()) == kv_facts(config())
    assert why_not_shareable(config()) is None
    assert key_bytes(config()) == 32


@pytest.mark.parametrize(
    "changes",
    [
        {"model": "owner/other"},
        {"commit": "beef"},
        {"dtype": "bfloat16"},
        {"block_size": 16},
        {"algorithm": "sha256_cbor"},
        {"num_workers": 2},
        {"rest": "something else"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_another_fact_makes_another_engine(changes: dict[str, Any]) -> None:
    """KV of the one is never taken for the other's."""
    assert kv_facts(config(**changes)) != kv_facts(config())


def test_new_weights_in_the_same_folder_make_another_engine(tmp_path: Path) -> None:
    """Though they have the same names and sizes."""
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"1234")
    before = kv_facts(config(model=str(tmp_path)))
    assert kv_facts(config(model=str(tmp_path))) == before

    os.utime(weights, ns=(0, 0))

    assert kv_facts(config(model=str(tmp_path))) != before


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"has_prefix_cache": False}, "prefix caching is off"),
        ({"lora": object()}, "an adapter may be another one"),
        ({"algorithm": "xxhash"}, "xxhash hashes blocks otherwise in each process"),
    ],
    ids=["no prefix cache", "adapters", "seeded hash"],
)
def test_keys_that_mean_something_else_later_are_not_shared(
    changes: dict[str, Any], reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And it is said why."""
    monkeypatch.delenv("PYTHONHASHSEED", raising=False)

    said = why_not_shareable(config(**changes))

    assert said is not None
    assert reason in said


def test_a_seed_of_the_environment_makes_any_hash_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """And another seed makes another engine."""
    monkeypatch.setenv("PYTHONHASHSEED", "5")
    assert why_not_shareable(config(algorithm="xxhash")) is None
    before = kv_facts(config())

    monkeypatch.setenv("PYTHONHASHSEED", "6")

    assert kv_facts(config()) != before
