"""Tool calls: which tools a turn of a conversation has called, read off its answer as it passes.

Owns finding the names in the answers of all three APIs, streamed and not. Whoever runs the tools
asks again once they have: what is made of that is the gateway's. An answer goes on as it came, at
once and unchanged; what is read of it is bounded, and only what can name a tool is parsed.

A tool is called where one is named, whatever the answer gives as its end: vLLM says "stop" when
the client chose the tool, and the Responses API says nothing.
"""

import json
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, Protocol

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.edge.identity import Identity
from app.edge.refusals import path_of

TOOL_PATHS = frozenset({"/v1/chat/completions", "/v1/messages", "/v1/responses"})
# Of an answer in one piece, or of one event of a stream: a longer one is not looked at.
MAX_READ_BYTES = 1 << 20
MAX_TOOLS = 32  # of one turn

# One of these stands in everything that names a tool, and in no text: there its quotes are escaped.
_MARKS = (b'"tool_calls"', b'"tool_use"', b'"function_call"')
_NAME = b'"name"'


class ToolListener(Protocol):
    """Who is told."""

    def tools_called(self, tenant: str, conversation: str, tools: list[str]) -> None: ...


class ToolCallsMiddleware:
    """Tells of each turn of a conversation that has called tools, before its end is sent."""

    def __init__(self, app: ASGIApp, listener: ToolListener) -> None:
        self._app, self._listener = app, listener

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        identity = _conversing(scope)
        if identity is None:
            await self._app(scope, receive, send)
            return
        reader: ToolCallReader | None = None

        async def read_and_send(message: Message) -> None:
            nonlocal reader
            if message["type"] == "http.response.start":
                reader = _reader(message)
            elif reader is not None:
                reader.feed(message.get("body", b""))
                if not message.get("more_body", False) and (tools := reader.tools()):
                    assert identity.conversation is not None
                    self._listener.tools_called(identity.tenant, identity.conversation, tools)
            await send(message)

        await self._app(scope, receive, read_and_send)


class ToolCallReader:
    """Finds the tools that an answer calls; it may come in pieces of any size.

    Holds one part of the answer at a time: of a stream a line, else the whole.
    """

    def __init__(self, *, is_stream: bool) -> None:
        self._is_stream = is_stream
        self._part = bytearray()
        self._is_too_long = False
        self._tools: dict[str, None] = {}

    def feed(self, piece: bytes) -> None:
        """Take the next piece of the answer."""
        if self._is_stream:
            is_whole_lines = piece.endswith(b"\n") and not self._part and not self._is_too_long
            if is_whole_lines and not _may_name(piece):
                return  # most of what a stream is
            *ends, piece = piece.split(b"\n")
            for end in ends:
                self._add(end)
                self._finish_part()
        self._add(piece)

    def tools(self) -> list[str]:
        """Those called in the whole answer, which ends here; each once, in order."""
        self._finish_part()
        return list(self._tools)

    def _add(self, piece: bytes) -> None:
        if len(self._part) + len(piece) > MAX_READ_BYTES:
            self._is_too_long = True
            self._part.clear()
        elif not self._is_too_long:
            self._part += piece

    def _finish_part(self) -> None:
        part, self._part = self._part, bytearray()
        self._is_too_long, was_too_long = False, self._is_too_long
        if was_too_long or not _may_name(part):
            return
        for name in _called(_json(part.removeprefix(b"data:"))):
            if len(self._tools) < MAX_TOOLS:
                self._tools[name] = None


def _conversing(scope: Scope) -> Identity | None:
    """Whose turn a request is, if it is one of a conversation's and may call tools."""
    if scope["type"] != "http" or path_of(scope) not in TOOL_PATHS:
        return None
    identity: Identity | None = scope.get("state", {}).get("identity")
    return identity if identity is not None and identity.conversation is not None else None


def _reader(start: Message) -> ToolCallReader | None:
    if start["status"] != HTTPStatus.OK:
        return None
    kind = Headers(raw=start["headers"]).get("content-type", "")
    return ToolCallReader(is_stream=kind.startswith("text/event-stream"))


def _may_name(part: bytes | bytearray) -> bool:
    return _NAME in part and any(mark in part for mark in _MARKS)


def _json(part: bytes | bytearray) -> Any:
    try:
        return json.loads(part)
    except ValueError:
        return None


def _called(answer: Any) -> Iterator[str]:
    """The tools that an answer, or an event of a stream, names as called."""
    match answer:
        case {"choices": [*choices]}:  # OpenAI's chat: a choice has a message, or a delta of one
            for choice in choices:
                match choice:
                    case {"message": {"tool_calls": [*calls]}} | {
                        "delta": {"tool_calls": [*calls]}
                    }:
                        yield from _functions(calls)
        case {"type": "content_block_start", "content_block": block}:  # Anthropic's stream
            yield from _items([block], "tool_use")
        case {"type": "message", "content": [*blocks]}:
            yield from _items(blocks, "tool_use")
        case {"type": "response.output_item.done", "item": item}:  # OpenAI's responses, streamed
            yield from _items([item], "function_call")
        case {"object": "response", "output": [*items]}:
            yield from _items(items, "function_call")


def _functions(calls: list[Any]) -> Iterator[str]:
    for call in calls:
        match call:
            case {"function": {"name": str(name)}}:
                yield name


def _items(items: list[Any], kind: str) -> Iterator[str]:
    for item in items:
        match item:
            case {"type": str(its_kind), "name": str(name)} if its_kind == kind:
                yield name
