"""Traces: which HTTP requests have a span, and what it says of them.

Owns the choice of routes and the attributes that only the edge knows. The span itself is
``ops.tracing``'s; loaded only where tracing is on.
"""

from opentelemetry.trace import Tracer
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.edge.identity import current_identity
from app.edge.refusals import path_of
from ops.tracing import names
from ops.tracing.http_trace import TRACE_HEADERS, http_request

# What generates, in the words of OpenTelemetry's conventions for generative AI.
OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/responses": "chat",
    "/v1/messages": "chat",
}


class TracesMiddleware:
    """Gives each request that generates its span; the others pass as they are."""

    def __init__(self, app: ASGIApp, tracer: Tracer) -> None:
        self._app, self._tracer = app, tracer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = path_of(scope) if scope["type"] == "http" else ""
        if route not in OPERATIONS or scope["method"] != "POST":
            await self._app(scope, receive, send)
            return
        with http_request(self._tracer, route, Headers(scope=scope), _attributes(route)) as request:

            async def send_and_note(message: Message) -> None:
                if message["type"] == "http.response.start":
                    request.answer(message["status"])
                await send(message)

            await self._app(_without_trace(scope), receive, send_and_note)


def _attributes(route: str) -> dict[str, str]:
    attributes = {names.OPERATION: OPERATIONS[route]}
    identity = current_identity.get(None)
    if identity is not None:
        attributes[names.TENANT] = identity.tenant
        if identity.conversation is not None:
            attributes[names.CONVERSATION] = identity.conversation
    return attributes


def _without_trace(scope: Scope) -> Scope:
    """The request without the caller's trace: vLLM would warn that it does not go on from it."""
    headers = [each for each in scope["headers"] if each[0].decode("latin-1") not in TRACE_HEADERS]
    return {**scope, "headers": headers}
