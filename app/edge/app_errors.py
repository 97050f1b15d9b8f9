"""The app's errors: what vLLM's app answers with a status of 400 or more, in its client's shape.

vLLM answers Anthropic's paths in OpenAI's shape when a body breaks its rules, and any path in its
web framework's when a body cannot be read. Statuses, sentences and headers stay as they are.
"""

import json
from http import HTTPStatus
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.edge.error_bodies import app_error, error_body
from app.edge.refusals import path_of


class AppErrorsMiddleware:
    """Gives the app's error bodies the shape that the path's clients expect."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        await self._app(scope, receive, _ErrorShaper(path_of(scope), send).send)


class _ErrorShaper:
    """Stands between app and client for one answer; holds an error back until it is whole."""

    def __init__(self, path: str, send: Send) -> None:
        self._path, self._send = path, send
        self._start: Message | None = None
        self._body = bytearray()

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start" and message["status"] >= HTTPStatus.BAD_REQUEST:
            self._start = message
            return
        if self._start is None:
            await self._send(message)
            return
        self._body += message.get("body", b"")
        if not message.get("more_body", False):
            await self._send_shaped(self._start)

    async def _send_shaped(self, start: Message) -> None:
        body = self._shaped(start["status"])
        headers = [header for header in start["headers"] if header[0] != b"content-length"]
        headers.append((b"content-length", str(len(body)).encode()))
        await self._send({**start, "headers": headers})
        await self._send({"type": "http.response.body", "body": body})

    def _shaped(self, status: int) -> bytes:
        facts = app_error(_json(self._body), status)
        if facts is None:
            return bytes(self._body)
        return json.dumps(error_body(facts, status, self._path)).encode()


def _json(body: bytes | bytearray) -> Any:
    try:
        return json.loads(body)
    except ValueError:
        return None
