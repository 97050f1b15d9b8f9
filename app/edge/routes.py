"""Routes: what is served at all, answered in the shape clients expect where it is not.

vLLM's app answers an unknown path in its web framework's shape, which no client's error handling
knows; here it is OpenAI's or Anthropic's, as everywhere at this edge.
"""

from collections.abc import Sequence
from http import HTTPStatus

from starlette.routing import BaseRoute, Match
from starlette.types import ASGIApp, Receive, Scope, Send

from app.edge.refusals import Refusal, path_of, refuse


class KnownRoutesMiddleware:
    """Lets through what a route of the app takes; 404 or 405 for the rest."""

    def __init__(self, app: ASGIApp, routes: Sequence[BaseRoute]) -> None:
        self._app, self._routes = app, routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] != "OPTIONS":
            refusal = self._refusal(scope)
            if refusal is not None:
                await refuse(refusal, scope, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, scope: Scope) -> Refusal | None:
        has_path = False
        for route in self._routes:
            match, _ = route.matches(scope)
            if match is Match.FULL:
                return None
            has_path = has_path or match is Match.PARTIAL
        path, method = path_of(scope)[:200], scope["method"]
        if has_path:
            message = f"{path} does not take {method}"
            return Refusal(HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", message)
        message = f"{path} does not exist here; GET /openapi.json lists what does"
        return Refusal(HTTPStatus.NOT_FOUND, "not_found", message)
