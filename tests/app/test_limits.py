"""Limits: bodies that are too large are refused without being held, and do no further harm."""

import asyncio
import http.client
import json
import socket
from collections.abc import AsyncIterator, Iterator

import httpx2
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from app.edge.limits import BodyLimitMiddleware

LIMIT = 1000


async def length_of_body(request: Request) -> PlainTextResponse:
    return PlainTextResponse(str(len(await request.body())))


def new_app() -> BodyLimitMiddleware:
    routes = [
        Route("/v1/completions", length_of_body, methods=["POST"]),
        Route("/v1/messages", length_of_body, methods=["POST"]),
    ]
    return BodyLimitMiddleware(Starlette(routes=routes), max_body_bytes=LIMIT)


@pytest.fixture
def client() -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(new_app()), base_url="http://edge")


async def chunks(*sizes: int) -> AsyncIterator[bytes]:
    for size in sizes:
        yield b"x" * size


async def test_a_body_of_the_limit_passes(client: httpx2.AsyncClient) -> None:
    """The limit is the largest body allowed, declared or not."""
    declared = await client.post("/v1/completions", content=b"x" * LIMIT)
    chunked = await client.post("/v1/completions", content=chunks(LIMIT - 1, 1))

    assert (declared.text, chunked.text) == (str(LIMIT), str(LIMIT))


async def test_a_larger_body_is_refused(client: httpx2.AsyncClient) -> None:
    """One byte more is 413 in OpenAI's shape, declared or not."""
    declared = await client.post("/v1/completions", content=b"x" * (LIMIT + 1))
    chunked = await client.post("/v1/completions", content=chunks(LIMIT, 1))

    for answer in (declared, chunked):
        assert answer.status_code == 413
        error = answer.json()["error"]
        assert (error["type"], error["code"]) == ("invalid_request_error", "request_too_large")
        assert "1,000 bytes" in error["message"]


async def test_anthropics_path_refuses_in_anthropics_shape(client: httpx2.AsyncClient) -> None:
    """Anthropic's clients understand the refusal too."""
    answer = await client.post("/v1/messages", content=b"x" * (LIMIT + 1))

    assert (answer.status_code, answer.json()["error"]["type"]) == (413, "request_too_large")


async def test_a_declared_length_is_refused_before_anything_is_read() -> None:
    """A body announced as too large is never asked for."""
    sent: list[Message] = []

    async def receive() -> Message:
        raise AssertionError("the body was read")

    async def send(message: Message) -> None:
        sent.append(message)

    await new_app()(post_scope((b"content-length", b"1000000000000")), receive, send)

    assert sent[0]["status"] == 413


async def test_an_endless_body_is_read_no_further_than_the_limit() -> None:
    """Of a body without an end no more is taken in than the limit and one chunk."""
    num_chunks = 0
    sent: list[Message] = []

    async def receive() -> Message:
        nonlocal num_chunks
        num_chunks += 1
        return {"type": "http.request", "body": b"x" * 100, "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    await new_app()(post_scope(), receive, send)

    assert num_chunks == LIMIT // 100 + 1
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == 413


async def test_an_answer_under_way_is_cut_off_and_not_answered_twice() -> None:
    """When the app has begun to answer, a body that then grows too large ends the answer."""
    sent: list[Message] = []

    async def echo(_scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while (message := await receive())["type"] == "http.request":
            await send({**message, "type": "http.response.body"})
        await send({"type": "http.response.body", "body": b"the end"})

    async def receive() -> Message:
        return {"type": "http.request", "body": b"x" * 600, "more_body": True}

    async def send(message: Message) -> None:
        sent.append(message)

    await BodyLimitMiddleware(echo, LIMIT)(post_scope(), receive, send)

    assert [message.get("status") for message in sent] == [200, None]
    assert sent[1]["body"] == b"x" * 600


async def test_start_and_end_of_the_app_pass_through() -> None:
    """Only requests have bodies to count."""
    seen: list[str] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope["type"])

    async def receive() -> Message:
        return {"type": "lifespan.startup"}

    async def send(_message: Message) -> None:
        return

    await BodyLimitMiddleware(app, LIMIT)({"type": "lifespan"}, receive, send)

    assert seen == ["lifespan"]


@pytest.mark.parametrize("implementation", ["h11", "httptools"])
@pytest.mark.parametrize("is_chunked", [False, True])
async def test_the_connection_serves_the_next_request(
    implementation: str, *, is_chunked: bool
) -> None:
    """After a refused 8 MB body the same connection carries an ordinary request."""

    def blocks() -> Iterator[bytes]:
        for _ in range(128):
            yield b"x" * 65536

    def talk(port: int) -> list[tuple[int, bytes]]:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
        answers = []
        for body in (blocks() if is_chunked else b"x" * 2**23, b"small"):
            connection.request("POST", "/v1/completions", body=body)
            first_socket = connection.sock
            response = connection.getresponse()
            answers.append((response.status, response.read()))
            assert connection.sock is first_socket
        connection.close()
        return answers

    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        server = uvicorn.Server(
            uvicorn.Config(new_app(), http=implementation, log_level="critical", lifespan="off")
        )
        serving = asyncio.create_task(server.serve(sockets=[listener]))
        try:
            [refused, served] = await asyncio.to_thread(talk, port)
        finally:
            server.should_exit = True
            await serving

    assert refused[0] == 413
    assert json.loads(refused[1])["error"]["code"] == "request_too_large"
    assert served == (200, b"5")


def post_scope(*headers: tuple[bytes, bytes]) -> dict[str, object]:
    return {
        "type": "http",
        "method": "POST",
        "path": "/v1/completions",
        "query_string": b"",
        "headers": list(headers),
    }
