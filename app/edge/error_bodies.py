"""The bodies of errors on the wire: OpenAI's error object, or Anthropic's on Anthropic's paths.

With these either's unmodified client raises its usual exception and shows the sentence. Which
errors there are, and when, is decided elsewhere.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

_ANTHROPIC_PATH = "/v1/messages"
_ANTHROPIC_TYPES: Mapping[int, str] = {
    HTTPStatus.UNAUTHORIZED: "authentication_error",
    HTTPStatus.FORBIDDEN: "permission_error",
    HTTPStatus.NOT_FOUND: "not_found_error",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "request_too_large",
    HTTPStatus.TOO_MANY_REQUESTS: "rate_limit_error",
    HTTPStatus.SERVICE_UNAVAILABLE: "overloaded_error",
}


@dataclass(frozen=True, slots=True)
class ErrorFacts:
    """What an error says: a sentence for people, a code and perhaps a field for programs."""

    message: str
    code: str | int
    kind: str = "invalid_request_error"
    param: str | None = None


def error_body(facts: ErrorFacts, status: int, path: str) -> dict[str, Any]:
    """The error as the clients that use ``path`` expect it."""
    if _is_anthropic(path):
        return {
            "type": "error",
            "error": {"type": _anthropic_type(status), "message": facts.message},
        }
    return {
        "error": {
            "message": facts.message,
            "type": facts.kind,
            "param": facts.param,
            "code": facts.code,
        }
    }


def app_error(body: Any, status: int) -> ErrorFacts | None:
    """What an error body of vLLM's app says; None where it is nothing of the app's own."""
    match body:
        case {"error": {"message": str(message), "type": str(kind), **more}}:
            param = more.get("param")
            return ErrorFacts(message, status, kind, None if param is None else str(param))
        case {"detail": str(detail)}:
            # Its web framework's, for a body that it could not read.
            return ErrorFacts(f"{detail}: JSON in UTF-8 is wanted", status, "Bad Request")
        case _:
            return None


def _is_anthropic(path: str) -> bool:
    return path == _ANTHROPIC_PATH or path.startswith(_ANTHROPIC_PATH + "/")


def _anthropic_type(status: int) -> str:
    is_ours = status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return _ANTHROPIC_TYPES.get(status, "api_error" if is_ours else "invalid_request_error")
