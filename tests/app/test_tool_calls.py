"""Tool calls are found in every answer that makes some, in whatever pieces it passes."""

import json
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import httpx2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message

from app.edge import tool_calls
from app.edge.identity import IdentityMiddleware
from app.edge.tool_calls import MAX_TOOLS, ToolCallReader, ToolCallsMiddleware
from app.tenants import open_directory

# A model may write anything, also what looks like a call.
TEXT = 'not "tool_calls": [{"function": {"name": "no"}}], {"type": "tool_use", "name": "no"}\n\n'
USAGE = {"prompt_tokens": 9, "total_tokens": 12, "completion_tokens": 3}


def chat_call(name: str | None, arguments: str, *, index: int = 0) -> dict[str, Any]:
    function = {"arguments": arguments} if name is None else {"name": name, "arguments": arguments}
    return {"id": "call-1", "type": "function", "index": index, "function": function}


def chat(*calls: dict[str, Any], end: str = "tool_calls") -> dict[str, Any]:
    message = {"role": "assistant", "content": TEXT, "tool_calls": list(calls)}
    choice = {"index": 0, "message": message, "finish_reason": end}
    return {"id": "chatcmpl-1", "object": "chat.completion", "choices": [choice], "usage": USAGE}


def chat_chunk(**delta: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": delta, "finish_reason": None}
    return {"id": "chatcmpl-1", "object": "chat.completion.chunk", "choices": [choice]}


def events(*answers: dict[str, Any]) -> bytes:
    """A stream as OpenAI's chat has it."""
    return b"".join(b"data: %s\n\n" % json.dumps(one).encode() for one in answers) + b"data: [DONE]"


def named_events(*answers: dict[str, Any]) -> bytes:
    """A stream as Anthropic's messages and OpenAI's responses have it."""
    return b"".join(
        b"event: %s\ndata: %s\n\n" % (one["type"].encode(), json.dumps(one).encode())
        for one in answers
    )


def message(*blocks: dict[str, Any]) -> dict[str, Any]:
    content = [{"type": "text", "text": TEXT}, *blocks]
    return {"id": "m", "type": "message", "content": content, "stop_reason": "tool_use"}


def response(*items: dict[str, Any]) -> dict[str, Any]:
    said = {"type": "message", "content": [{"type": "output_text", "text": TEXT}]}
    tools = [{"type": "function", "name": "offered", "parameters": {}}]
    return {"id": "r", "object": "response", "output": [said, *items], "tools": tools}


SEARCH = {"name": "search", "id": "1", "input": {}, "arguments": "{}"}
WHOLE = {
    "chat": (chat(chat_call("search", "{}"), chat_call("read", "{}", index=1)), ["search", "read"]),
    "a chat that was told to call": (chat(chat_call("search", "{}"), end="stop"), ["search"]),
    "messages": (message({"type": "tool_use", **SEARCH}), ["search"]),
    "responses": (response({"type": "function_call", **SEARCH}), ["search"]),
    "chat without": (chat(end="stop"), []),
    "messages without": (message(), []),
    "responses without": (response(), []),
    "no answer": ({"choices": [7], "tool_calls": [{"name": "x"}]}, []),
}
STREAMS = {
    "chat": (
        events(
            chat_chunk(role="assistant", content=""),
            chat_chunk(content=TEXT),
            chat_chunk(tool_calls=[chat_call("search", "")]),
            *(chat_chunk(tool_calls=[chat_call(None, part)]) for part in ('{"a', '": 1}')),
            chat_chunk(tool_calls=[chat_call("read", "{}", index=1)]),
        ),
        ["search", "read"],
    ),
    "messages": (
        named_events(
            {"type": "message_start", "message": message()},
            {"type": "content_block_start", "content_block": {"type": "text", "text": TEXT}},
            {"type": "content_block_start", "content_block": {"type": "tool_use", **SEARCH}},
            {"type": "message_delta", "delta": {"stop_reason": "tool_use"}},
        ),
        ["search"],
    ),
    "responses": (
        named_events(
            {"type": "response.created", "response": response()},
            {"type": "response.output_text.delta", "delta": TEXT},
            {"type": "response.output_item.added", "item": {"type": "function_call", **SEARCH}},
            {"type": "response.output_item.done", "item": {"type": "function_call", **SEARCH}},
            {"type": "response.completed", "response": response()},
        ),
        ["search"],
    ),
    "chat without": (events(chat_chunk(content=TEXT), {"choices": [], "usage": USAGE}), []),
    "no events": (b'data: {"tool_calls", "name"\n\n\n{"name": "tool_use"}\n: "name"', []),
}


def read(pieces: Iterable[bytes], *, is_stream: bool) -> list[str]:
    reader = ToolCallReader(is_stream=is_stream)
    for piece in pieces:
        reader.feed(piece)
    return reader.tools()


def cut(body: bytes, ends: list[int]) -> list[bytes]:
    places = [0, *sorted(end % (len(body) + 1) for end in ends), len(body)]
    return [body[first:end] for first, end in pairwise(places)]


@pytest.mark.parametrize("name", WHOLE)
@given(ends=st.lists(st.integers(0, 10**6), max_size=5))
def test_calls_are_found_in_an_answer_in_any_pieces(name: str, ends: list[int]) -> None:
    """In the shape of each API; what text only looks like is none."""
    answer, tools = WHOLE[name]

    assert read(cut(json.dumps(answer).encode(), ends), is_stream=False) == tools


@pytest.mark.parametrize("name", STREAMS)
@given(ends=st.lists(st.integers(0, 10**6), max_size=12))
def test_calls_are_found_in_a_stream_in_any_pieces(name: str, ends: list[int]) -> None:
    """Events may be cut anywhere; a call is one however many events it takes."""
    body, tools = STREAMS[name]

    assert read(cut(body, ends), is_stream=True) == tools


@pytest.mark.parametrize("name", STREAMS)
def test_calls_are_found_in_a_stream_byte_by_byte(name: str) -> None:
    """The smallest pieces there are."""
    body, tools = STREAMS[name]

    assert read((body[i : i + 1] for i in range(len(body))), is_stream=True) == tools


def test_what_is_too_long_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """An event past the bound is passed over, and the next one is read again; nothing is held."""
    body, _ = STREAMS["chat"]
    long_event = events(chat_chunk(content="x" * 5000, tool_calls=[chat_call("long", "")]))
    monkeypatch.setattr(tool_calls, "MAX_READ_BYTES", 1000)

    assert read(cut(long_event + b"\n\n" + body, [1, 700, 1500]), is_stream=True) == [
        "search",
        "read",
    ]
    whole = json.dumps(chat(chat_call("search", "x" * 2000))).encode()
    assert read(cut(whole, [600, 1200]), is_stream=False) == []


def test_only_so_many_tools_are_told() -> None:
    """Their names are the client's: it may invent any number."""
    calls = [chat_call(f"tool {index}", "{}", index=index) for index in range(1000)]

    assert len(read([json.dumps(chat(*calls)).encode()], is_stream=False)) == MAX_TOOLS


# --- in the edge ----------------------------------------------------------------------------------


class Listener:
    """Who is told, and of what."""

    def __init__(self) -> None:
        self.told: list[tuple[str, str, list[str]]] = []

    def tools_called(self, tenant: str, conversation: str, tools: list[str]) -> None:
        self.told.append((tenant, conversation, tools))


async def post(
    answer: Response,
    listener: Listener,
    *,
    path: str = "/v1/chat/completions",
    conversation: str | None = "c",
) -> httpx2.Response:
    """What a client gets of ``answer``, which the app gives on ``path``."""

    async def give(_request: Request) -> Response:
        return answer

    app = Starlette(routes=[Route(path, give, methods=["POST"])])
    edge = IdentityMiddleware(ToolCallsMiddleware(app, listener), open_directory(None, {}))
    headers = {"X-Tenant": "acme"} | ({"X-Session-Id": conversation} if conversation else {})
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(edge), base_url="http://edge"
    ) as client:
        return await client.post(path, headers=headers)


async def test_whose_turn_called_which_tools_is_told() -> None:
    """Once for an answer, with its tenant and conversation; the answer is unchanged."""
    answer, tools = WHOLE["chat"]
    listener = Listener()

    got = await post(JSONResponse(answer), listener)

    assert got.json() == answer
    assert listener.told == [("acme", "c", tools)]


async def test_a_stream_passes_as_it_came() -> None:
    """Each piece is sent on before the next is made, and none is changed."""
    body, tools = STREAMS["chat"]
    pieces = cut(body, [5, 90, 91, 400])
    listener, passed = Listener(), list[bytes]()
    num_passed_when_made = []

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        kind = (b"content-type", b"text/event-stream; charset=utf-8")
        await send({"type": "http.response.start", "status": 200, "headers": [kind]})
        for piece in pieces:
            num_passed_when_made.append(len(passed))
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        assert listener.told == []
        await send({"type": "http.response.body", "body": b""})

    async def send(message: Message) -> None:
        if message["type"] == "http.response.body":
            passed.append(message["body"])

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    headers = [(b"x-session-id", b"c"), (b"x-tenant", b"acme")]
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/chat/completions",
        "headers": headers,
    }
    edge = IdentityMiddleware(ToolCallsMiddleware(app, listener), open_directory(None, {}))
    await edge(scope, receive, send)

    assert passed == [*pieces, b""]
    assert num_passed_when_made == list(range(len(pieces)))
    assert listener.told == [("acme", "c", tools)]


async def test_a_stream_that_ends_early_tells_nothing() -> None:
    """Where the answer breaks off, its client runs no tools."""
    body, _ = STREAMS["chat"]
    listener = Listener()

    async def break_off() -> Any:
        yield body
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await post(StreamingResponse(break_off(), media_type="text/event-stream"), listener)

    assert listener.told == []


@pytest.mark.parametrize(
    ("answer", "path", "conversation"),
    [
        (JSONResponse(WHOLE["chat"][0]), "/v1/chat/completions", None),
        (JSONResponse(WHOLE["chat"][0]), "/v1/completions", "c"),
        (JSONResponse(WHOLE["chat"][0], status_code=400), "/v1/chat/completions", "c"),
        (JSONResponse(WHOLE["chat without"][0]), "/v1/chat/completions", "c"),
    ],
    ids=["no conversation", "no path of chats", "an error", "no calls"],
)
async def test_of_other_answers_nothing_is_told(
    answer: Response, path: str, conversation: str | None
) -> None:
    """Only a turn of a conversation that has called a tool has a next one to wait for."""
    listener = Listener()

    await post(answer, listener, path=path, conversation=conversation)

    assert listener.told == []
