"""Refusals: answers that the edge gives itself, in the place of vLLM's app.

Owns how one is sent, over HTTP or to a WebSocket. When to refuse is decided elsewhere, what an
error's body looks like is `error_bodies`.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus

from starlette.types import Scope, Send

from app.edge.error_bodies import ErrorFacts, error_body

# 4000 to 4999 are an application's own; the last three digits are HTTP's status.
_WEBSOCKET_CODES_FROM = 4000


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request goes no further: a sentence for people, a code and a status for programs."""

    status: HTTPStatus
    code: str | int
    message: str
    param: str | None = None
    kind: str = "invalid_request_error"
    headers: Mapping[str, str] = field(default_factory=dict)


async def refuse(refusal: Refusal, scope: Scope, send: Send) -> None:
    """Answer an HTTP request or a WebSocket handshake with the refusal."""
    if scope["type"] == "websocket":
        code = _WEBSOCKET_CODES_FROM + refusal.status
        # A close frame holds 125 bytes, two of them the code.
        reason = refusal.message.encode("ascii", "replace")[:123].decode()
        await send({"type": "websocket.close", "code": code, "reason": reason})
        return
    facts = ErrorFacts(refusal.message, refusal.code, refusal.kind, refusal.param)
    body = json.dumps(error_body(facts, refusal.status, path_of(scope))).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *((name.encode(), value.encode()) for name, value in refusal.headers.items()),
    ]
    if refusal.status is HTTPStatus.UNAUTHORIZED:
        headers.append((b"www-authenticate", b"Bearer"))
    await send({"type": "http.response.start", "status": int(refusal.status), "headers": headers})
    await send({"type": "http.response.body", "body": body})


def path_of(scope: Scope) -> str:
    """The path as the application routes it: without the prefix it is mounted under."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path.removeprefix(root) if path.startswith(root + "/") else path
