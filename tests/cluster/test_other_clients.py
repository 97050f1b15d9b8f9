"""Anthropic's client, curl, vLLM's serving benchmark and plain HTTP against the whole system."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pytest

from tests.cluster.program import MODEL, Program
from tests.cluster.traffic import completion

pytestmark = pytest.mark.cluster

# vLLM's module has no program of its own in the CPU package; arguments and entry are its own.
BENCHMARK = """\
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser

parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


def test_anthropic_messages_stream_what_they_answer_in_one_piece(server: Program) -> None:
    """Anthropic's client gets the same text streamed and not."""
    client = anthropic.Anthropic(base_url=server.url, api_key="unused", max_retries=0, timeout=120)
    request: Any = {
        "model": MODEL,
        "max_tokens": 40,
        "messages": [{"role": "user", "content": "Tell a story."}],
        "extra_body": {"temperature": 0},  # no argument of the client's any more
    }

    whole = client.messages.create(**request)
    with client.messages.stream(**request) as stream:
        streamed = "".join(stream.text_stream)

    [block] = whole.content
    assert block.type == "text"
    assert block.text == streamed != ""
    assert whole.usage.output_tokens == 40


def test_curl_shows_each_token_as_it_comes(server: Program) -> None:
    """``curl -N`` prints the first events while the request still runs, and the last is [DONE]."""
    body = json.dumps(completion(max_tokens=2000, stream=True))
    with subprocess.Popen(
        ["curl", "-sSN", f"{server.url}/v1/completions", "--json", body],  # noqa: S607
        stdout=subprocess.PIPE,
        text=True,
    ) as curl:
        assert curl.stdout is not None
        first = curl.stdout.readline()
        was_running = curl.poll() is None
        *_, last = (line for line in curl.stdout if line.strip())

    assert first.startswith("data: {")
    assert was_running
    assert last == "data: [DONE]\n"
    assert curl.returncode == 0


def test_vllms_benchmark_runs(server: Program, tiny_model: Path, tmp_path: Path) -> None:
    """vLLM's own serving benchmark completes all its requests, through chat and completions."""
    for backend, endpoint in (
        ("openai", "/v1/completions"),
        ("openai-chat", "/v1/chat/completions"),
    ):
        result = tmp_path / f"{backend}.json"
        finished = subprocess.run(
            [
                *(sys.executable, "-c", BENCHMARK),
                *("--backend", backend, "--endpoint", endpoint),
                *("--base-url", server.url, "--model", MODEL, "--tokenizer", str(tiny_model)),
                *("--dataset-name", "random", "--random-input-len", "32"),
                *("--random-output-len", "16", "--num-prompts", "8", "--ignore-eos"),
                *("--save-result", "--result-filename", str(result)),
            ],
            check=False,
            capture_output=True,
            text=True,
            timeout=200,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )

        assert finished.returncode == 0, finished.stderr
        assert json.loads(result.read_text())["completed"] == 8


async def test_text_becomes_tokens_and_back(server: Program, http: httpx.AsyncClient) -> None:
    """/tokenize and /detokenize undo each other."""
    text = "Grüße, 世界!"

    tokens = (await http.post("/tokenize", json={"model": MODEL, "prompt": text})).json()["tokens"]
    back = await http.post("/detokenize", json={"model": MODEL, "tokens": tokens})

    assert back.json()["prompt"] == text
