"""OpenAI's own Python client against the whole system, unmodified."""

import json
from typing import Any

import openai
import pytest

from tests.cluster.program import MODEL, Program

pytestmark = pytest.mark.cluster

QUESTION: list[Any] = [{"role": "user", "content": "Who are you?"}]
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "likes": {"enum": ["tea", "coffee"]},
    },
    "required": ["name", "likes"],
    "additionalProperties": False,
}
# Strict: without it vLLM holds a call's arguments to JSON, but not to their schema.
GREET: Any = {
    "type": "function",
    "function": {
        "name": "greet",
        "description": "Greet somebody.",
        "parameters": PERSON,
        "strict": True,
    },
}


@pytest.fixture
def client(server: Program) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="unused", max_retries=0, timeout=120)


def test_models_are_listed(client: openai.OpenAI) -> None:
    """The served model is known by its name, with its length."""
    [model] = client.models.list().data

    assert model.id == MODEL
    assert getattr(model, "max_model_len") == 8192  # noqa: B009  (vLLM's own, not in the type)


def test_a_chat_streams_what_it_answers_in_one_piece(client: openai.OpenAI) -> None:
    """A chat has the same text, usage and end streamed and not."""
    whole = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=40, temperature=0
    )
    chunks = list(
        client.chat.completions.create(
            model=MODEL,
            messages=QUESTION,
            max_tokens=40,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
        )
    )

    deltas = [choice for chunk in chunks for choice in chunk.choices]
    assert len(deltas) > 1
    assert "".join(choice.delta.content or "" for choice in deltas) == (
        whole.choices[0].message.content
    )
    assert deltas[-1].finish_reason == whole.choices[0].finish_reason == "length"
    assert chunks[-1].usage is not None
    assert whole.usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 40


def test_a_completion_streams_what_it_answers_in_one_piece(client: openai.OpenAI) -> None:
    """A completion has the same text streamed and not."""
    whole = client.completions.create(model=MODEL, prompt="Once", max_tokens=40, temperature=0)
    pieces = client.completions.create(
        model=MODEL, prompt="Once", max_tokens=40, temperature=0, stream=True
    )

    assert "".join(piece.choices[0].text for piece in pieces) == whole.choices[0].text


def test_responses_stream_what_they_answer_in_one_piece(client: openai.OpenAI) -> None:
    """The Responses API has the same text streamed and not."""
    whole = client.responses.create(
        model=MODEL, input="Tell a story.", max_output_tokens=40, temperature=0
    )
    events = client.responses.create(
        model=MODEL, input="Tell a story.", max_output_tokens=40, temperature=0, stream=True
    )

    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert len(deltas) > 1
    assert "".join(deltas) == whole.output_text != ""


def test_several_answers_to_one_prompt(client: openai.OpenAI) -> None:
    """With n=2 and a temperature there are two answers, numbered, and they differ."""
    answer = client.completions.create(
        model=MODEL, prompt="Once", max_tokens=30, temperature=1, n=2, seed=1
    )

    assert [choice.index for choice in answer.choices] == [0, 1]
    assert answer.choices[0].text != answer.choices[1].text


def test_a_seed_makes_a_sample_again(client: openai.OpenAI) -> None:
    """The same seed gives the same sample, another seed another one."""
    first, again, other = (
        client.completions.create(
            model=MODEL, prompt="Once", max_tokens=30, temperature=1, seed=seed
        )
        .choices[0]
        .text
        for seed in (7, 7, 8)
    )

    assert first == again != other


def test_a_stop_string_ends_the_answer(client: openai.OpenAI) -> None:
    """The answer ends before the stop string, and says that it was stopped."""
    whole = client.completions.create(model=MODEL, prompt="Once", max_tokens=40, temperature=0)
    text = whole.choices[0].text
    stop = text[20:23]

    stopped = client.completions.create(
        model=MODEL, prompt="Once", max_tokens=40, temperature=0, stop=[stop]
    )

    assert stopped.choices[0].text == text[: text.index(stop)]
    assert stopped.choices[0].finish_reason == "stop"


def test_logprobs_come_with_each_token(client: openai.OpenAI) -> None:
    """Every token has its log probability and as many alternatives as were asked for."""
    answer = client.chat.completions.create(
        model=MODEL, messages=QUESTION, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    )

    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.content is not None
    assert len(logprobs.content) == 5
    for token in logprobs.content:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(other.logprob for other in token.top_logprobs) < 0


def test_a_json_schema_shapes_the_answer(client: openai.OpenAI) -> None:
    """Structured output is JSON of the schema, streamed and not."""
    arguments: dict[str, Any] = {
        "model": MODEL,
        "messages": QUESTION,
        "max_tokens": 200,
        "temperature": 0,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "person", "schema": PERSON},
        },
    }
    whole = client.chat.completions.create(**arguments).choices[0].message.content
    chunks = client.chat.completions.create(**arguments, stream=True)

    assert whole is not None
    assert_is_person(json.loads(whole))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole


@pytest.mark.parametrize(
    "choice",
    ["required", {"type": "function", "function": {"name": "greet"}}],
    ids=["required", "named"],
)
def test_a_tool_is_called(client: openai.OpenAI, choice: Any) -> None:
    """With a tool asked for, the answer is calls of it with arguments of its schema."""
    answer = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=300,
        temperature=0,
        tools=[GREET],
        tool_choice=choice,
    )

    calls = answer.choices[0].message.tool_calls
    assert calls
    for call in calls:
        assert call.type == "function"
        assert call.function.name == "greet"
        assert_is_person(json.loads(call.function.arguments))


def test_a_tool_call_streams(client: openai.OpenAI) -> None:
    """A streamed tool call's pieces put together are a call with arguments of its schema."""
    chunks = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=300,
        temperature=0,
        tools=[GREET],
        tool_choice={"type": "function", "function": {"name": "greet"}},
        stream=True,
    )

    pieces = [
        call.function
        for chunk in chunks
        for choice in chunk.choices
        for call in choice.delta.tool_calls or ()
        if call.function is not None
    ]
    assert {piece.name for piece in pieces if piece.name} == {"greet"}
    assert_is_person(json.loads("".join(piece.arguments or "" for piece in pieces)))


def test_a_tool_may_be_called_or_not(client: openai.OpenAI) -> None:
    """With the choice left to the model, tools in the request do no harm to a plain answer."""
    answer = client.chat.completions.create(
        model=MODEL,
        messages=QUESTION,
        max_tokens=20,
        temperature=0,
        tools=[GREET],
        tool_choice="auto",
    )

    assert answer.choices[0].message.content


def assert_is_person(value: Any) -> None:
    assert value.keys() == {"name", "likes"}
    assert isinstance(value["name"], str)
    assert value["likes"] in ("tea", "coffee")
