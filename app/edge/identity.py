"""Identity: which tenant a request belongs to, and which conversation.

Owns reading both from the request's headers and handing them, with the request's wishes and the
record of its admission, to whatever runs inside the request (`current_identity`, and `identity` in
the ASGI scope's state). Whose key is whose is `app.tenants`, what may be wished for `wishes`; what
any of it is used for is decided further in.

With keys on, the tenant comes from the API key and from nothing else: a header that names another
tenant has no effect.
"""

import asyncio
import re
from contextvars import ContextVar
from dataclasses import dataclass, field
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from app.edge.refusals import Refusal, path_of, refuse
from app.edge.wishes import WishError, read_wishes
from app.errors import KeyRefusedError, MissingKeyError, TenantNameError
from app.tenants import DEFAULT_TENANT, TenantDirectory
from app.tenants_file import check_tenant_name
from deployments.admissions import AdmissionRecord
from scheduler.admission import Wishes

# The first that is present counts. The second is what clients of llm-d's gateway send.
TENANT_HEADERS = ("x-tenant", "x-llm-d-inference-fairness-id")
CONVERSATION_HEADER = "x-session-id"
# For probes and scrapers, which hold no key; neither tells anything about one request.
OPEN_PATHS = frozenset({"/health", "/metrics", "/metrics/"})

_CONVERSATION = re.compile(r"[\x21-\x7e]{1,256}")
_ALLOWED_CONVERSATIONS = "1 to 256 visible ASCII characters, without spaces"


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a request is served for. Conversations of two tenants may have the same name."""

    tenant: str
    conversation: str | None
    wishes: Wishes = field(default_factory=Wishes)
    admission: AdmissionRecord = field(default_factory=AdmissionRecord, compare=False)


current_identity: ContextVar[Identity] = ContextVar("current_identity")


class IdentityMiddleware:
    """Lets a request in with its identity, or answers it with why not."""

    def __init__(self, app: ASGIApp, directory: TenantDirectory) -> None:
        self._app, self._directory = app, directory

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not _needs_identity(scope):
            await self._app(scope, receive, send)
            return
        if self._directory.is_due:
            # A file of a thousand tenants takes about 0.1 s to read: too long for the event loop,
            # on which every stream's next token waits.
            await asyncio.to_thread(self._directory.refresh)
        identity = identify(Headers(scope=scope), self._directory)
        if isinstance(identity, Refusal):
            await refuse(identity, scope, send)
            return
        scope.setdefault("state", {})["identity"] = identity
        token = current_identity.set(identity)
        try:
            await self._app(scope, receive, send)
        finally:
            current_identity.reset(token)


def identify(headers: Headers, directory: TenantDirectory) -> Identity | Refusal:
    """Whom these headers speak for, or why that cannot be told."""
    try:
        tenant = (
            _keyed_tenant(headers, directory) if directory.keys_required else _named_tenant(headers)
        )
    except KeyRefusedError as error:
        return Refusal(HTTPStatus.UNAUTHORIZED, "invalid_api_key", str(error))
    except TenantNameError as error:
        return Refusal(HTTPStatus.BAD_REQUEST, "invalid_tenant", str(error), TENANT_HEADERS[0])
    conversation = headers.get(CONVERSATION_HEADER)
    if conversation is not None and _CONVERSATION.fullmatch(conversation) is None:
        message = f"{CONVERSATION_HEADER} is not allowed: {_ALLOWED_CONVERSATIONS}"
        return Refusal(HTTPStatus.BAD_REQUEST, "invalid_conversation", message, CONVERSATION_HEADER)
    try:
        wishes = read_wishes(headers, directory.share_of(tenant).service_class)
    except WishError as error:
        return Refusal(HTTPStatus.BAD_REQUEST, "invalid_wish", str(error), error.header)
    return Identity(tenant, conversation, wishes)


def _keyed_tenant(headers: Headers, directory: TenantDirectory) -> str:
    scheme, _, bearer = headers.get("authorization", "").partition(" ")
    # Anthropic's clients send the second.
    sent = bearer.strip() if scheme.lower() == "bearer" else headers.get("x-api-key", "")
    if not sent:
        raise MissingKeyError
    return directory.tenant_of_key(sent)


def _named_tenant(headers: Headers) -> str:
    for header in TENANT_HEADERS:
        if header in headers:
            return check_tenant_name(headers[header])
    return DEFAULT_TENANT


def _needs_identity(scope: Scope) -> bool:
    if scope["type"] == "websocket":
        return True
    # OPTIONS is a browser's question before its request; browsers send no key with it.
    return (
        scope["type"] == "http"
        and scope["method"] != "OPTIONS"
        and path_of(scope) not in OPEN_PATHS
    )
