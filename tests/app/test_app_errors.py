"""Errors of vLLM's app: each client gets them in the shape it knows."""

import json
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from app.edge.app_errors import AppErrorsMiddleware

SENTENCE = "max_tokens must be at least 1"
OF_VLLM = {
    "error": {
        "message": SENTENCE,
        "type": "BadRequestError",
        "param": "max_tokens",
        "code": 400,
    }
}
OF_THE_FRAMEWORK = {"detail": "There was an error parsing the body"}


async def post(path: str, answer: Response) -> httpx2.Response:
    """What comes of ``answer``, which the app gives on ``path``."""

    async def give(_request: Request) -> Response:
        return answer

    app = AppErrorsMiddleware(Starlette(routes=[Route(path, give, methods=["POST"])]))
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(app), base_url="http://edge"
    ) as client:
        return await client.post(path)


async def test_vllms_error_stays_as_it_is_on_openais_paths() -> None:
    """Message, type, parameter and code are vLLM's."""
    answer = await post("/v1/completions", JSONResponse(OF_VLLM, 400))

    assert (answer.status_code, answer.json()) == (400, OF_VLLM)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, "invalid_request_error"),
        (404, "not_found_error"),
        (500, "api_error"),
        (503, "overloaded_error"),
    ],
)
@pytest.mark.parametrize(
    "body",
    [OF_VLLM, {"type": "error", "error": {"type": "BadRequestError", "message": SENTENCE}}],
    ids=["OpenAI's", "half Anthropic's"],
)
async def test_anthropics_paths_answer_in_anthropics_shape(
    body: Any, status: int, kind: str
) -> None:
    """The type is one that Anthropic's API documents, by status; the sentence is vLLM's."""
    answer = await post("/v1/messages", JSONResponse(body, status))

    assert answer.status_code == status
    assert answer.json() == {"type": "error", "error": {"type": kind, "message": SENTENCE}}


async def test_a_body_that_cannot_be_read_is_refused_in_openais_shape() -> None:
    """The web framework's answer becomes a sentence that says what is wanted."""
    answer = await post("/v1/completions", JSONResponse(OF_THE_FRAMEWORK, 400))

    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert "UTF-8" in error["message"]


async def test_headers_stay_with_the_error() -> None:
    """A hint when to try again gets through, and the length is that of the new body."""
    answer = await post("/v1/messages", JSONResponse(OF_VLLM, 503, headers={"Retry-After": "5"}))

    assert answer.headers["retry-after"] == "5"
    assert answer.headers["content-length"] == str(len(answer.content))


@pytest.mark.parametrize(
    "answer",
    [
        PlainTextResponse("no", 503),
        JSONResponse({"status": "unavailable", "reason": "no engine"}, 503),
        StreamingResponse(iter(["no ", "engine"]), 503),
    ],
    ids=["text", "another JSON", "in pieces"],
)
async def test_what_is_no_error_body_passes_unchanged(answer: Response) -> None:
    """A probe's answer is nobody's error object."""
    whole = answer.body if not isinstance(answer, StreamingResponse) else b"no engine"

    assert (await post("/health", answer)).content == whole


async def test_good_answers_pass_as_they_come() -> None:
    """A stream is not held back, and one that ends with an error keeps its events."""
    events = [b"data: 1\n\n", b"data: " + json.dumps(OF_VLLM).encode() + b"\n\n"]

    answer = await post("/v1/messages", StreamingResponse(iter(events)))

    assert answer.content == b"".join(events)
