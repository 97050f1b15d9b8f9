"""Limits: how large a request's body may be.

Owns counting the body as it arrives and answering 413 once it is too large; holds none of it.
How many tokens a prompt may have is vLLM's to check.
"""

from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.edge.refusals import Refusal, refuse


class BodyLimitMiddleware:
    """Answers requests whose body is larger than ``max_body_bytes`` with 413.

    A declared length is refused before anything is read, a body without one as soon as it has grown
    past the limit. What is still to come is left to the server, which reads past it: the
    connection serves the next request.
    """

    def __init__(self, app: ASGIApp, max_body_bytes: int) -> None:
        self._app, self._max_body_bytes = app, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        meter = _BodyMeter(scope, receive, send, self._max_body_bytes)
        declared = Headers(scope=scope).get("content-length", "")
        if declared.isdecimal() and int(declared) > self._max_body_bytes:
            await meter.refuse()
            return
        try:
            await self._app(scope, meter.receive, meter.send)
        except ClientDisconnect:
            # To the app a refused body looks like a client that went away.
            if not meter.is_refused:
                raise


class _BodyMeter:
    """Stands between server and app for one request and counts what passes.

    Once refused, the app receives only that the client is gone, and nothing it sends gets out.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, max_body_bytes: int) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._max_body_bytes = max_body_bytes
        self._body_bytes = 0
        self._has_answered = False
        self.is_refused = False

    async def receive(self) -> Message:
        if self.is_refused:
            return {"type": "http.disconnect"}
        message = await self._receive()
        self._body_bytes += len(message.get("body", b""))
        if self._body_bytes <= self._max_body_bytes:
            return message
        await self.refuse()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        if self.is_refused:
            return
        self._has_answered = True
        await self._send(message)

    async def refuse(self) -> None:
        """Answer 413, unless the app has begun an answer: that one is then cut off here."""
        self.is_refused = True
        if self._has_answered:
            return
        message = (
            f"the request's body is larger than {self._max_body_bytes:,} bytes, the most allowed"
        )
        refusal = Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "request_too_large", message)
        await refuse(refusal, self._scope, self._send)
