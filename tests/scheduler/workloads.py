"""Requests whose answers from plain vLLM are what every disturbed run has to give."""

import random
from typing import Any

from vllm.sampling_params import StructuredOutputsParams

from tests.scheduler.engine_harness import Work, prompt


def _mixed() -> list[Work]:
    """200 greedy requests of mixed lengths; every third shares its beginning with others."""
    choose = random.Random(0)
    beginnings = [prompt(choose, 100) for _ in range(3)]
    works = []
    for index in range(200):
        own = prompt(choose, choose.choice([3, 20, 60, 200, 500]))
        shared = beginnings[index % 9 // 3] if index % 3 == 0 else []
        works.append(Work(f"mixed-{index}", shared + own, choose.randrange(1, 129)))
    return works


def _low() -> list[Work]:
    """Twelve of low priority, long enough to be in the way."""
    choose = random.Random(1)
    return [
        Work(f"low-{index}", prompt(choose, 40 + index), 200, priority=5) for index in range(12)
    ]


def _long() -> list[Work]:
    """Five of low priority whose prompts fill a small engine's blocks."""
    choose = random.Random(2)
    return [Work(f"long-{index}", prompt(choose, 400), 150, priority=5) for index in range(5)]


def _sampled() -> list[Work]:
    """Seeded sampling, several choices, stop tokens, penalties, log probabilities."""
    choose = random.Random(3)
    options: list[dict[str, Any]] = [
        {"temperature": 0.8, "seed": 7},
        {"temperature": 1.0, "seed": 8, "n": 3},
        {"temperature": 1.0, "seed": 9, "top_p": 0.9, "top_k": 20, "repetition_penalty": 1.2},
        {"stop_token_ids": [104]},
        {"logprobs": 2, "presence_penalty": 0.5},
        {"min_tokens": 10, "ignore_eos": False},
    ]
    return [
        Work(f"sampled-{index}", prompt(choose, 50), 60, options=options[index % len(options)])
        for index in range(24)
    ]


def _constrained() -> list[Work]:
    """Eight whose output a grammar constrains."""
    choose = random.Random(4)
    grammar = StructuredOutputsParams(regex="(ab|cd|ef){30}")
    options = {"structured_outputs": grammar, "ignore_eos": False}
    return [
        Work(f"constrained-{index}", prompt(choose, 30), 60, options=options) for index in range(8)
    ]


def _scored() -> list[Work]:
    """Four whose prompts are scored: a worker keeps state beside their KV."""
    choose = random.Random(5)
    options = {"prompt_logprobs": 1}
    return [Work(f"scored-{index}", prompt(choose, 50), 30, options=options) for index in range(4)]


WORKLOADS = {
    "mixed": _mixed(),
    "low": _low(),
    "long": _long(),
    "sampled": _sampled(),
    "constrained": _constrained(),
    "scored": _scored(),
}
