"""Admissions: a request that the fleet refuses is answered as refused, streamed or not.

Owns holding an answer's beginning back until the fleet has said whether the request may run, and
putting 429 or 503 with ``Retry-After`` in its place where it may not. vLLM begins a streamed answer
before it asks. Who is refused, and for how long, is decided in the fleet.
"""

from math import ceil

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.edge.identity import current_identity
from app.edge.refusals import Refusal, refuse
from deployments.admissions import AdmissionRecord, Denial

# Response headers of llm-d's gateway and of OpenAI's clients, which retry a 429 unless told not to.
DROPPED_REASON_HEADER = "x-llm-d-request-dropped-reason"
SHOULD_RETRY_HEADER = "x-should-retry"


class AdmissionMiddleware:
    """Lets an answer begin once its request is admitted; answers the refused ones itself."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        identity = current_identity.get(None)
        if scope["type"] != "http" or identity is None:
            await self._app(scope, receive, send)
            return
        answer = _HeldAnswer(identity.admission, scope, send)
        try:
            await self._app(scope, receive, answer.send)
        except Exception:
            # Some of vLLM's streams end in the refusal itself, and say no more.
            if not await answer.refuse_if_denied():
                raise


class _HeldAnswer:
    """Stands between app and client for one answer; what has begun is passed on as it is."""

    def __init__(self, admission: AdmissionRecord, scope: Scope, send: Send) -> None:
        self._admission, self._scope, self._send = admission, scope, send
        self._held: list[Message] = []
        self._has_begun = False
        self._has_refused = False

    async def send(self, message: Message) -> None:
        if self._has_begun:
            await self._send(message)
            return
        if await self.refuse_if_denied():
            return  # what the app says of it itself
        self._held.append(message)
        if len(self._held) > 1 and (self._admission.is_decided or _is_last(message)):
            self._has_begun = True
            for held in self._held:
                await self._send(held)

    async def refuse_if_denied(self) -> bool:
        """Answer with the refusal, once, if there is one in time; return whether there is."""
        denial = self._admission.denial
        if self._has_begun or denial is None:
            return False
        if not self._has_refused:
            self._has_refused = True
            await refuse(_refusal(denial), self._scope, self._send)
        return True


def _is_last(message: Message) -> bool:
    return message["type"] == "http.response.body" and not message.get("more_body", False)


def _refusal(denial: Denial) -> Refusal:
    headers = {}
    if denial.retry_after_s is not None:
        headers["retry-after"] = str(ceil(denial.retry_after_s))
    if denial.dropped_reason is not None:
        headers[DROPPED_REASON_HEADER] = denial.dropped_reason
    if denial.is_for_good:
        headers[SHOULD_RETRY_HEADER] = "false"
    return Refusal(denial.status, denial.code, denial.message, kind=denial.kind, headers=headers)
