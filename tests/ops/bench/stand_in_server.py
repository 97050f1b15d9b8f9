"""An HTTP server in this process that answers completions as the test tells it to."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

HOST = "127.0.0.1"

Reply = Callable[[dict[str, Any], asyncio.StreamWriter], Awaitable[None]]
Page = Callable[[], dict[str, Any]]


def event(**fields: object) -> bytes:
    return b"data: " + json.dumps(fields).encode() + b"\n\n"


def tokens(text: str, ids: list[int] | None = None) -> bytes:
    return event(choices=[{"index": 0, "text": text, "token_ids": ids}])


def end(num_tokens: int) -> bytes:
    usage = {"prompt_tokens": 1, "completion_tokens": num_tokens}
    return event(choices=[], usage=usage) + b"data: [DONE]\n\n"


def chunk(data: bytes) -> bytes:
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)
STREAM_END = b"0\r\n\r\n"


def page(content: dict[str, Any]) -> bytes:
    body = json.dumps(content).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % len(body) + body


@dataclass
class StandIn:
    """What the server has seen."""

    port: int = 0
    bodies: list[dict[str, Any]] = field(default_factory=list)
    heads: list[str] = field(default_factory=list)
    num_connections: int = 0
    num_open: int = 0
    most_open: int = 0


@asynccontextmanager
async def serving(reply: Reply, get: Page = dict) -> AsyncIterator[StandIn]:
    """Answer every POST by ``reply(body, writer)``, every GET with the page that ``get`` returns.

    Leaving waits until clients have left.
    """
    seen = StandIn()
    talks: list[asyncio.Task[None] | None] = []

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.append(asyncio.current_task())
        seen.num_connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                if head.startswith("GET "):
                    writer.write(page(get()))
                    continue
                size = int(head.lower().split("content-length: ")[1].split("\r\n")[0])
                body = json.loads(await reader.readexactly(size))
                seen.heads.append(head)
                seen.bodies.append(body)
                seen.num_open += 1
                seen.most_open = max(seen.most_open, seen.num_open)
                await reply(body, writer)
                await writer.drain()
                seen.num_open -= 1
        except (asyncio.IncompleteReadError, ConnectionResetError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(talk, HOST, 0)
    seen.port = server.sockets[0].getsockname()[1]
    async with server:
        yield seen
        await asyncio.gather(*filter(None, talks))
