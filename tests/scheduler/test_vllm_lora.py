"""Switches of requests that use a LoRA adapter: equal prompts, KV of their own."""

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from vllm.lora.request import LoRARequest

from tests.scheduler.engine_harness import (
    Engine,
    EngineSettings,
    Work,
    preempt_at_random,
    prompt,
)

pytestmark = pytest.mark.engine

RANK = 8
# Of the tiny demo model: its hidden size, and the sizes of its query and value projections.
HIDDEN, SIZES = 64, {"q_proj": 4 * 32, "v_proj": 2 * 32}
NUM_LAYERS = 2


def write_adapter(folder: Path, seed: int) -> Path:
    """An adapter with random weights, large enough to change the tokens."""
    random_weights = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(NUM_LAYERS):
        for name, size in SIZES.items():
            prefix = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            for part, shape in (("lora_A", (RANK, HIDDEN)), ("lora_B", (size, RANK))):
                weights = torch.randn(shape, generator=random_weights)
                tensors[f"{prefix}.{part}.weight"] = 0.3 * weights
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": [*SIZES]}
    (folder / "adapter_config.json").write_text(json.dumps(config | {"task_type": "CAUSAL_LM"}))
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> LoRARequest:
    folder = write_adapter(tmp_path_factory.mktemp("adapters") / "adapter", seed=1)
    return LoRARequest("adapter", 1, str(folder))


@pytest.mark.parametrize(
    "started_engine",
    [EngineSettings(num_blocks=64, host_blocks=64, has_lora=True)],
    ids=["adapters"],
    indirect=True,
    scope="session",
)
def test_an_adapters_kv_is_its_own(engine: Engine, adapter: LoRARequest, seed: int) -> None:
    """Interrupted at every second step, each answer is what it is when nobody interrupts.

    The same prompts first without the adapter, then with it: never in one batch, since there
    vLLM 0.32 gives the adapter to all on a CPU.
    """
    choose = random.Random(0)
    plain = [Work(f"{n}", prompt(choose, choose.choice([70, 150])), 50) for n in range(12)]
    adapted = [replace(work, name=f"adapted-{work.name}", lora=adapter) for work in plain]
    undisturbed = engine.run(plain) | engine.run(adapted)
    assert all(undisturbed[f"{n}"] != undisturbed[f"adapted-{n}"] for n in range(12))
    engine.clear()

    engine.steer(preempt_at_random(random.Random(seed)))
    for works in (plain, adapted):
        again = engine.run(replace(work, name=f"again-{work.name}") for work in works)
        assert again == {f"again-{work.name}": undisturbed[work.name] for work in works}

    assert engine.switches().swaps_in > 20
