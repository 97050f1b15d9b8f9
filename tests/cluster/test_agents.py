"""Agents: a turn that calls a tool keeps its KV where it is, through the API of any client."""

import json
from typing import Any

import httpx
import pytest

from tests.cluster.fleet import fleet_when
from tests.cluster.program import MODEL

pytestmark = pytest.mark.cluster

# Long beside what the model answers: most of the turn is what the next one begins with.
QUESTION = {"role": "user", "content": "Look it up, please. " * 40}
SCHEMA = {
    "type": "object",
    "properties": {"title": {"enum": ["Emma", "Persuasion"]}},
    "required": ["title"],
    "additionalProperties": False,
}
FUNCTION = {"name": "look_up", "parameters": SCHEMA, "strict": True}

CHAT: dict[str, Any] = {
    "messages": [QUESTION],
    "tools": [{"type": "function", "function": FUNCTION}],
    "tool_choice": "required",
    "max_tokens": 300,
}
MESSAGES: dict[str, Any] = {
    "messages": [QUESTION],
    "tools": [{"name": "look_up", "input_schema": SCHEMA, "strict": True}],
    "tool_choice": {"type": "any"},
    "max_tokens": 300,
}
RESPONSES: dict[str, Any] = {
    "input": [QUESTION],
    "tools": [{"type": "function", **FUNCTION}],
    "tool_choice": "required",
    "max_output_tokens": 300,
}


async def take_turn(
    http: httpx.AsyncClient, path: str, body: dict[str, Any], *, conversation: str | None
) -> str:
    answer = await http.post(
        path,
        json={"model": MODEL, "temperature": 0, **body},
        headers={"X-Session-Id": conversation} if conversation else {},
    )
    assert answer.status_code == 200, answer.text
    return answer.text


async def num_pinned(http: httpx.AsyncClient, *, more_than: int = -1) -> int:
    """Turns that have been pinned, once there are more than so many."""
    fleet = await fleet_when(
        http, lambda fleet: fleet.switched("pins") > more_than, f"more than {more_than} pins"
    )
    return fleet.switched("pins")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", {**CHAT, "stream": True}),
        ("/v1/messages", MESSAGES),
        ("/v1/messages", {**MESSAGES, "stream": True}),
        ("/v1/responses", RESPONSES),
        ("/v1/responses", {**RESPONSES, "stream": True}),
    ],
    ids=["chat", "chat streamed", "messages", "messages streamed", "responses", "their stream"],
)
@pytest.mark.usefixtures("server")
async def test_a_turn_that_calls_a_tool_is_pinned(
    http: httpx.AsyncClient, path: str, body: dict[str, Any]
) -> None:
    """Whatever the client speaks, streamed or not."""
    # The first answer of a kind loads what reads it, and an engine that has just started waits for
    # nobody that long. Without a conversation nothing is pinned.
    await take_turn(http, path, body, conversation=None)
    before = await num_pinned(http)

    answer = await take_turn(http, path, body, conversation="an-agent")

    assert "look_up" in answer
    assert await num_pinned(http, more_than=before) == before + 1


@pytest.mark.usefixtures("server")
async def test_the_turn_behind_a_tool_goes_on_from_the_pin(http: httpx.AsyncClient) -> None:
    """The next turn, with the tool's result, finds the KV of the one before on the device."""
    before = await fleet_when(http, lambda _: True, "the server answers")
    first = await take_turn(http, "/v1/chat/completions", CHAT, conversation="one-more")
    message = json.loads(first)["choices"][0]["message"]
    await num_pinned(http, more_than=before.switched("pins"))

    results = [
        {"role": "tool", "tool_call_id": call["id"], "content": "It was found."}
        for call in message["tool_calls"]
    ]
    following = {**CHAT, "messages": [QUESTION, message, *results], "max_tokens": 5}
    await take_turn(
        http, "/v1/chat/completions", {**following, "tool_choice": "none"}, conversation="one-more"
    )

    hits = before.switched("pin_hits")
    await fleet_when(http, lambda fleet: fleet.switched("pin_hits") == hits + 1, "a hit")


@pytest.mark.usefixtures("server")
async def test_turns_of_no_conversation_are_not_pinned(http: httpx.AsyncClient) -> None:
    """Without a name for it nobody could tell its next turn; one with a name is told of after."""
    before = await num_pinned(http)

    await take_turn(http, "/v1/chat/completions", CHAT, conversation=None)
    await take_turn(http, "/v1/chat/completions", CHAT, conversation="the-last")

    assert await num_pinned(http, more_than=before) == before + 1
