"""The demo tokenizer loses nothing, and its chat template writes what vLLM's tool parser reads."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.demo_tokenizer import SPECIAL_TOKENS, TOKEN_IDS, build_tokenizer, tokenizer_config

TOKENIZER = build_tokenizer()

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
    },
}
CALL = {
    "id": "1",
    "type": "function",
    "function": {"name": "get_weather", "arguments": {"city": "Zürich"}},
}


@pytest.fixture(scope="module")
def chat_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The tokenizer as transformers loads it from a model folder."""
    from transformers import AutoTokenizer

    folder: Path = tmp_path_factory.mktemp("tokenizer")
    TOKENIZER.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer_config(max_tokens=64)))
    return AutoTokenizer.from_pretrained(folder)


def _render(tokenizer: Any, messages: list[dict[str, Any]], **options: Any) -> str:
    return str(tokenizer.apply_chat_template(messages, tokenize=False, **options))


@given(st.text())
def test_any_text_survives_a_round_trip(text: str) -> None:
    """Decoding the tokens of a text gives the text, whatever characters it has."""
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


@given(st.lists(st.one_of(st.text(), st.sampled_from(SPECIAL_TOKENS))).map("".join))
def test_text_around_special_tokens_survives_a_round_trip(text: str) -> None:
    """Special tokens written out in a text come back where they were."""
    assert TOKENIZER.decode(TOKENIZER.encode(text).ids, skip_special_tokens=False) == text


@given(st.text(alphabet=st.characters(exclude_characters="<", exclude_categories=["Cs"])))
def test_a_token_is_a_byte(text: str) -> None:
    """Text without special tokens has as many tokens as bytes."""
    assert len(TOKENIZER.encode(text).ids) == len(text.encode())


@pytest.mark.parametrize("token", SPECIAL_TOKENS)
def test_a_special_token_is_one_token(token: str) -> None:
    """Each special token has an id of its own, after those of the bytes."""
    assert TOKENIZER.encode(token).ids == [TOKEN_IDS[token]]
    assert TOKEN_IDS[token] >= 256


def test_transformers_counts_the_same_tokens(chat_tokenizer: Any) -> None:
    """Loaded from a folder, the tokenizer adds nothing and gives the same ids."""
    text = "Grüße 🙂  two blanks\n"
    assert chat_tokenizer(text)["input_ids"] == TOKENIZER.encode(text).ids
    assert chat_tokenizer.decode(chat_tokenizer(text)["input_ids"]) == text


def test_turns_are_written_in_order(chat_tokenizer: Any) -> None:
    """System, user and assistant turns follow each other, and the assistant's next turn is open."""
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "Bye"},
    ]
    assert _render(chat_tokenizer, messages, add_generation_prompt=True) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n"
        "<|im_start|>user\nBye<|im_end|>\n"
        "<|im_start|>assistant\n"
    )


@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]])
def test_tools_stand_in_the_system_turn(chat_tokenizer: Any, system: list[dict[str, Any]]) -> None:
    """With tools there is one system turn, ours or the caller's, that has each tool as JSON."""
    messages = [*system, {"role": "user", "content": "Hi"}]
    text = _render(chat_tokenizer, messages, tools=[TOOL])
    assert text.count("<|im_start|>system\n") == 1
    listed = text.split("<tools>\n")[1].split("\n</tools>")[0]
    assert json.loads(listed) == TOOL
    assert ("Be brief." in text) == bool(system)


def test_tool_results_are_marked(chat_tokenizer: Any) -> None:
    """A tool's answer is a turn of its own that says it is one."""
    messages = [{"role": "tool", "tool_call_id": "1", "content": "sunny"}]
    assert _render(chat_tokenizer, messages) == (
        "<|im_start|>tool\n<tool_response>\nsunny\n</tool_response><|im_end|>\n"
    )


def test_a_written_tool_call_is_read_back_by_vllm(chat_tokenizer: Any) -> None:
    """A tool call put into the prompt has the form that vLLM's hermes parser takes from outputs."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser

    messages = [{"role": "assistant", "content": None, "tool_calls": [CALL, CALL]}]
    turn = _render(chat_tokenizer, messages)
    text = turn.removeprefix("<|im_start|>assistant\n").removesuffix("<|im_end|>\n")

    request = ChatCompletionRequest(messages=[], tools=[TOOL])
    read = Hermes2ProToolParser(chat_tokenizer).extract_tool_calls(text, request)

    calls = [(call.function.name, json.loads(call.function.arguments)) for call in read.tool_calls]
    assert calls == [("get_weather", {"city": "Zürich"})] * 2
    assert read.content is None
