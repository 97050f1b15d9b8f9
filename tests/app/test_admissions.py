"""Admissions: answers that wait for the fleet's word, and what a refused client is told."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from starlette.responses import JSONResponse, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from app.edge.admissions import AdmissionMiddleware
from app.edge.identity import IdentityMiddleware, current_identity
from app.tenants import TenantDirectory
from app.tenants_file import TenantsFile
from deployments.admissions import AdmissionRecord, over_limit, unavailable
from scheduler.errors import QuotaExceededError

PAST_LIMIT = over_limit(QuotaExceededError("acme", "tokens_per_minute", 100, 50, 11.2))
TOO_LARGE = over_limit(QuotaExceededError("acme", "tokens_per_minute", 100, 101, 60.0))
NO_ENGINE = unavailable("no engine is ready", "rejected-no-endpoints")
Ask = Callable[[AdmissionRecord], Awaitable[None]]


async def let_in(admission: AdmissionRecord) -> None:
    with admission.asking():
        await asyncio.sleep(0)


async def never_ask(_admission: AdmissionRecord) -> None: ...


def denied(denial: Any) -> Ask:
    async def ask(admission: AdmissionRecord) -> None:
        with admission.asking():
            await asyncio.sleep(0)
            admission.deny(denial)

    return ask


def streaming(ask: Ask, *before: str) -> ASGIApp:
    """An app that has begun its answer, with status 200, when it asks; so vLLM streams."""

    async def pieces(admission: AdmissionRecord) -> AsyncIterator[str]:
        for piece in before:
            yield piece
        await ask(admission)
        yield "data: error" if admission.denial else "data: token"
        yield "data: [DONE]"

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await StreamingResponse(pieces(current_identity.get().admission))(scope, receive, send)

    return app


def answering(ask: Ask) -> ASGIApp:
    """An app that asks before it answers; so vLLM does where nothing is streamed."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        admission = current_identity.get().admission
        await ask(admission)
        status = 500 if admission.denial else 200
        await JSONResponse({"status": status}, status)(scope, receive, send)

    return app


def client_of(app: ASGIApp) -> httpx2.AsyncClient:
    directory = TenantDirectory(TenantsFile(keys_required=False))
    edge = IdentityMiddleware(AdmissionMiddleware(app), directory)
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(edge), base_url="http://edge")


@pytest.mark.parametrize("new_app", [streaming, answering])
async def test_who_is_past_a_limit_is_told_so_with_429(new_app: Callable[[Ask], ASGIApp]) -> None:
    """When to come again, in whole seconds; in OpenAI's error shape, whatever the app had begun."""
    answer = await client_of(new_app(denied(PAST_LIMIT))).post("/v1/chat/completions")

    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "12"
    assert answer.headers["x-llm-d-request-dropped-reason"] == "rejected-tokens-per-minute"
    assert "x-should-retry" not in answer.headers
    assert answer.json()["error"] == {
        "message": ("tenant acme has reached its tokens_per_minute of 100; try again in 12 s"),
        "type": "tokens",
        "param": None,
        "code": "rate_limit_exceeded",
    }


@pytest.mark.parametrize("new_app", [streaming, answering])
async def test_without_an_engine_the_answer_is_503(new_app: Callable[[Ask], ASGIApp]) -> None:
    """Streamed or not, with the time after which trying again may help."""
    answer = await client_of(new_app(denied(NO_ENGINE))).post("/v1/completions")

    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
    assert answer.json()["error"]["code"] == 503
    assert answer.headers["x-llm-d-request-dropped-reason"] == "rejected-no-endpoints"


async def test_who_asks_for_too_much_at_once_need_not_try_again() -> None:
    """OpenAI's and Anthropic's clients look at this header and stop."""
    answer = await client_of(streaming(denied(TOO_LARGE))).post("/v1/completions")

    assert (answer.status_code, answer.headers["x-should-retry"]) == (429, "false")
    assert "this request alone may take 101 tokens" in answer.json()["error"]["message"]


async def test_events_from_before_the_fleets_word_are_held_back() -> None:
    """The responses API says that it has begun before it asks."""
    begun = "event: response.created"
    refused = await client_of(streaming(denied(PAST_LIMIT), begun)).post("/v1/responses")
    served = await client_of(streaming(let_in, begun)).post("/v1/responses")

    assert (refused.status_code, "response.created" in refused.text) == (429, False)
    assert served.text == f"{begun}data: tokendata: [DONE]"


@pytest.mark.parametrize("denial", [PAST_LIMIT, None])
async def test_a_stream_that_breaks_is_a_refusal_only_where_there_is_one(denial: Any) -> None:
    """vLLM's responses API lets the error out; any other error goes on to the server."""

    async def broken(admission: AdmissionRecord) -> None:
        if denial:
            await denied(denial)(admission)
        raise ConnectionError

    client = client_of(streaming(broken, "event: response.created"))
    if denial:
        assert (await client.post("/v1/responses")).status_code == 429
    else:
        with pytest.raises(ConnectionError):
            await client.post("/v1/responses")


@pytest.mark.parametrize("new_app", [streaming, answering])
async def test_what_asks_for_nothing_is_answered(new_app: Callable[[Ask], ASGIApp]) -> None:
    """Lists of models, errors of a body: the fleet has no word in them."""
    answer = await client_of(new_app(never_ask)).get("/v1/models")

    assert answer.status_code == 200


async def test_a_stream_is_passed_on_as_it_comes() -> None:
    """Once admitted, each piece leaves at once; a later denial cannot take the status back."""
    sent: list[str] = []
    go_on = asyncio.Event()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        admission = current_identity.get().admission
        await send({"type": "http.response.start", "status": 200, "headers": []})
        assert sent == []
        await let_in(admission)
        await send({"type": "http.response.body", "body": b"one", "more_body": True})
        await go_on.wait()
        admission.deny(PAST_LIMIT)
        await send({"type": "http.response.body", "body": b"two"})

    async def send(message: Any) -> None:
        sent.append(message.get("body", message["type"]))
        go_on.set()

    async def receive() -> Any: ...

    directory = TenantDirectory(TenantsFile(keys_required=False))
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": []}
    await IdentityMiddleware(AdmissionMiddleware(app), directory)(scope, receive, send)

    assert sent == ["http.response.start", b"one", b"two"]


async def test_the_openai_client_raises_its_own_error() -> None:
    """A streamed request ends as a rate limit, before its stream has begun."""
    client = openai.AsyncOpenAI(
        api_key="any",
        base_url="http://edge/v1",
        max_retries=0,
        http_client=client_of(streaming(denied(PAST_LIMIT))),
    )
    with pytest.raises(openai.RateLimitError, match="has reached its tokens_per_minute") as raised:
        await client.chat.completions.create(model="demo", messages=[], stream=True)

    assert raised.value.response.headers["retry-after"] == "12"


async def test_the_anthropic_client_raises_its_own_error() -> None:
    """In Anthropic's error shape."""
    client = anthropic.AsyncAnthropic(
        api_key="any",
        base_url="http://edge",
        max_retries=0,
        http_client=client_of(streaming(denied(PAST_LIMIT))),
    )
    with pytest.raises(anthropic.RateLimitError, match="rate_limit_error"):
        await client.messages.create(model="demo", messages=[], max_tokens=1, stream=True)
