"""Bad requests: each gets one clear sentence in its client's shape, nothing else is disturbed."""

import json
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from tests.cluster.conftest import MAX_BODY_BYTES
from tests.cluster.program import MODEL, Program
from tests.cluster.traffic import Stream, completion

pytestmark = pytest.mark.cluster

COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
HELLO = [{"role": "user", "content": "Hello"}]
MAX_MODEL_LEN = 8192


@dataclass(frozen=True, slots=True)
class BadRequest:
    """A request and how it is to be refused; ``says`` must all stand in the message."""

    body: Any
    says: tuple[str, ...]
    status: int = 400
    path: str = COMPLETIONS
    headers: tuple[tuple[str, str], ...] = ()

    @property
    def content(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


BAD_REQUESTS = {
    "unknown model": BadRequest(
        {**completion(max_tokens=1), "model": "nope"}, ("nope", "does not exist", MODEL), 404
    ),
    "malformed JSON": BadRequest(b'{"model": "tiny", "prompt": ', ("JSON",)),
    "no UTF-8": BadRequest(b'{"model": "\xff\xfe"}', ("UTF-8",)),
    "nested too deeply": BadRequest(b"[" * (MAX_BODY_BYTES - 1), ("JSON",)),
    "no JSON object": BadRequest(b"[1, 2]", ("valid",)),
    "empty body": BadRequest(b"", ("required",)),
    "no prompt": BadRequest({"model": MODEL, "max_tokens": 1}, ("prompt",)),
    "empty prompt": BadRequest(completion("", max_tokens=1), ("prompt", "non-empty")),
    "empty chat": BadRequest(
        {"model": MODEL, "messages": []}, ("at least one message",), path=CHAT
    ),
    "over-long prompt": BadRequest(
        completion("x" * (MAX_MODEL_LEN + 1), max_tokens=1), (str(MAX_MODEL_LEN), "prompt")
    ),
    "prompt of a wrong type": BadRequest(completion({"text": "x"}, max_tokens=1), ("prompt",)),
    "messages of a wrong type": BadRequest(
        {"model": MODEL, "messages": "Hello"}, ("messages", "list"), path=CHAT
    ),
    "token ids beyond the vocabulary": BadRequest(
        completion([10**6], max_tokens=1), ("vocabulary",)
    ),
    "max_tokens of a wrong type": BadRequest(completion(max_tokens="many"), ("max_tokens",)),
    "negative max_tokens": BadRequest(completion(max_tokens=-1), ("max_tokens", "at least 1")),
    "no max_tokens": BadRequest(completion(max_tokens=0), ("max_tokens", "at least 1")),
    "huge max_tokens": BadRequest(completion(max_tokens=10**12), ("max_tokens", "8192")),
    "temperature out of bounds": BadRequest(
        {**completion(max_tokens=1), "temperature": -1}, ("temperature", "non-negative")
    ),
    "schema that is none": BadRequest(
        {
            "model": MODEL,
            "messages": HELLO,
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "none", "schema": {"type": "wish"}},
            },
        },
        ("Invalid type: wish",),
        path=CHAT,
    ),
    "oversized body": BadRequest(
        completion("x" * MAX_BODY_BYTES, max_tokens=1), ("100,000 bytes",), 413
    ),
    "tenant that is no name": BadRequest(
        completion(max_tokens=1), ("tenant", "letters"), headers=(("X-Tenant", "a b/c"),)
    ),
    "conversation that is no name": BadRequest(
        completion(max_tokens=1), ("x-session-id", "ASCII"), headers=(("X-Session-Id", "a b"),)
    ),
    "responses without input": BadRequest({"model": MODEL}, ("input",), path="/v1/responses"),
    "wrong method": BadRequest(b"", ("does not take",), 405, path="/v1/models"),
}

MESSAGES = "/v1/messages"
BAD_MESSAGES = {
    "malformed JSON": BadRequest(b'{"model": ', ("JSON",), path=MESSAGES),
    "no UTF-8": BadRequest(b'{"model": "\xff\xfe"}', ("UTF-8",), path=MESSAGES),
    "no messages": BadRequest(
        {"model": MODEL, "max_tokens": 1}, ("messages", "required"), path=MESSAGES
    ),
    "max_tokens of a wrong type": BadRequest(
        {"model": MODEL, "max_tokens": "many", "messages": HELLO}, ("max_tokens",), path=MESSAGES
    ),
    "unknown model": BadRequest(
        {"model": "nope", "max_tokens": 1, "messages": HELLO}, ("nope",), 404, path=MESSAGES
    ),
}

CLOSED_PATHS = (
    "/nowhere",
    "/start_profile",
    "/v1/load_lora_adapter",
    "/scale_elastic_ep",
    "/sleep",
    "/reset_prefix_cache",
    "/collective_rpc",
    "/invocations",
)


@pytest.mark.parametrize("name", BAD_REQUESTS)
async def test_a_bad_request_is_refused_with_a_reason(
    server: Program, http: httpx.AsyncClient, name: str
) -> None:
    """The answer names what was wrong and what is allowed, and has no traceback or path in it."""
    bad = BAD_REQUESTS[name]

    answer = await http.post(
        bad.path,
        content=bad.content,
        headers={"Content-Type": "application/json", **dict(bad.headers)},
    )

    error = assert_refused(answer, bad.status)
    assert all(part in error["message"] for part in bad.says), error["message"]


@pytest.mark.parametrize("path", CLOSED_PATHS)
async def test_what_is_not_served_is_not_found(
    server: Program, http: httpx.AsyncClient, path: str
) -> None:
    """Unknown paths and vLLM's routes for operators answer 404, in the same shape."""
    error = assert_refused(await http.post(path, json={}), 404)

    assert path in error["message"]


@pytest.mark.parametrize("name", BAD_MESSAGES)
async def test_a_bad_message_is_refused_in_anthropics_shape(
    server: Program, http: httpx.AsyncClient, name: str
) -> None:
    """On Anthropic's path the error is Anthropic's, so that its clients show the sentence."""
    bad = BAD_MESSAGES[name]

    answer = await http.post(
        bad.path, content=bad.content, headers={"Content-Type": "application/json"}
    )

    assert answer.status_code == bad.status, answer.text
    assert answer.json().keys() == {"type", "error"}
    assert answer.json()["type"] == "error"
    error = answer.json()["error"]
    kind = "not_found_error" if bad.status == 404 else "invalid_request_error"
    assert error["type"] == kind
    assert all(part in error["message"] for part in bad.says), error["message"]


async def test_a_stream_that_cannot_begin_is_refused_as_any_request(
    server: Program, http: httpx.AsyncClient
) -> None:
    """A bad request for a stream gets its status and error, not a stream that holds them."""
    answer = await http.post(COMPLETIONS, json=completion(max_tokens=-1, stream=True))

    assert "max_tokens" in assert_refused(answer, 400)["message"]


async def test_bad_requests_disturb_nobody(server: Program, http: httpx.AsyncClient) -> None:
    """A stream goes on to its end while every kind of bad request is sent."""
    stream = Stream(http, completion(max_tokens=3000), tenant="undisturbed")
    await stream.begun()

    for bad in BAD_REQUESTS.values():
        answer = await http.post(bad.path, content=bad.content, headers=dict(bad.headers))
        assert answer.status_code >= 400

    await stream.end()
    assert stream.finish_reason == "length"
    assert stream.num_tokens == 3000


def assert_refused(answer: httpx.Response, status: int) -> dict[str, Any]:
    """The error of an answer that refuses, in OpenAI's shape."""
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert error.keys() >= {"message", "type", "param", "code"}
    assert error["message"]
    assert "Traceback" not in error["message"]
    assert "site-packages" not in error["message"]
    return error
