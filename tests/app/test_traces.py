"""Traces at the edge: which requests have a span, whose trace it belongs to, what it says."""

from typing import Any

import httpx2
import pytest
from opentelemetry import trace
from opentelemetry.trace import SpanKind, StatusCode
from starlette.datastructures import Headers
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from app.edge.identity import IdentityMiddleware
from app.edge.traces import TracesMiddleware
from app.tenants import TenantDirectory
from app.tenants_file import TenantsFile
from ops.tracing import names
from tests.ops.tracing.recorded import Recorded

TRACE_ID, SPAN_ID = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CHAT = "/v1/chat/completions"


class App:
    """Answers with ``status``; keeps what it was asked and whether a span was open then."""

    def __init__(self, status: int = 200) -> None:
        self.status = status
        self.headers: list[Headers] = []
        self.was_traced: list[bool] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers.append(Headers(scope=scope))
        self.was_traced.append(trace.get_current_span().is_recording())
        await PlainTextResponse("ok", self.status)(scope, receive, send)


async def ask(
    app: ASGIApp,
    recorded: Recorded,
    path: str = CHAT,
    method: str = "POST",
    headers: dict[str, str] | None = None,
) -> httpx2.Response:
    directory = TenantDirectory(TenantsFile(keys_required=False))
    edge = IdentityMiddleware(TracesMiddleware(app, recorded.tracer), directory)
    async with httpx2.AsyncClient(
        transport=httpx2.ASGITransport(edge), base_url="http://gateway"
    ) as client:
        return await client.request(method, path, headers=headers)


async def test_a_request_that_generates_has_a_span() -> None:
    """What is asked, by whom, in which conversation, and how it was answered."""
    recorded, app = Recorded(), App()
    await ask(app, recorded, headers={"x-tenant": "acme", "x-session-id": "talk-1"})

    [span] = recorded.spans
    assert (span.name, span.kind, span.parent) == (f"POST {CHAT}", SpanKind.SERVER, None)
    assert dict(span.attributes or {}) == {
        names.HTTP_METHOD: "POST",
        names.HTTP_ROUTE: CHAT,
        names.HTTP_STATUS: 200,
        names.OPERATION: "chat",
        names.TENANT: "acme",
        names.CONVERSATION: "talk-1",
    }
    assert app.was_traced == [True]


@pytest.mark.parametrize(
    ("path", "method"), [("/health", "GET"), ("/v1/models", "GET"), (CHAT, "OPTIONS")]
)
async def test_a_request_that_generates_nothing_has_none(path: str, method: str) -> None:
    """Probes and lists would drown the rest."""
    recorded, app = Recorded(), App()
    answer = await ask(app, recorded, path, method)

    assert (answer.status_code, recorded.spans, app.was_traced) == (200, [], [False])


async def test_a_callers_trace_goes_on() -> None:
    """The span is a child of the caller's; vLLM, whose own tracing is off, does not see it."""
    recorded, app = Recorded(sample_share=0.0), App()
    sent = {"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-01", "tracestate": "a=b", "x-kept": "1"}
    await ask(app, recorded, headers=sent)

    [span] = recorded.spans
    assert span.context is not None
    assert span.parent is not None
    assert f"{span.context.trace_id:032x}" == TRACE_ID
    assert f"{span.parent.span_id:016x}" == SPAN_ID
    assert {"traceparent", "tracestate"}.isdisjoint(app.headers[0].keys())
    assert app.headers[0]["x-kept"] == "1"


async def test_a_caller_that_does_not_trace_is_not_traced() -> None:
    """It has decided for all that its request sets off."""
    recorded = Recorded()
    await ask(App(), recorded, headers={"traceparent": f"00-{TRACE_ID}-{SPAN_ID}-00"})
    assert recorded.spans == []


@pytest.mark.parametrize("header", ["", "00-zz-1-01", f"00-{TRACE_ID}-{SPAN_ID}"])
async def test_a_broken_trace_begins_a_new_one(header: str) -> None:
    """As W3C Trace Context has it; the request is served all the same."""
    recorded = Recorded()
    answer = await ask(App(), recorded, headers={"traceparent": header})

    assert answer.status_code == 200
    assert [span.parent for span in recorded.spans] == [None]


@pytest.mark.parametrize(
    ("status", "code"), [(429, StatusCode.UNSET), (503, StatusCode.ERROR), (200, StatusCode.UNSET)]
)
async def test_the_servers_faults_are_errors(status: int, code: StatusCode) -> None:
    """A client's are not."""
    recorded = Recorded()
    await ask(App(status), recorded)

    [span] = recorded.spans
    assert span.status.status_code is code
    assert (span.attributes or {})[names.HTTP_STATUS] == status


async def test_an_app_that_fails_is_an_error_that_quotes_nothing() -> None:
    """By the error's name: what it says may be a prompt."""

    async def failing(*_: Any) -> None:
        raise ValueError("a secret prompt")

    recorded = Recorded()
    with pytest.raises(ValueError, match="secret"):
        await ask(failing, recorded)

    [span] = recorded.spans
    assert span.status.status_code is StatusCode.ERROR
    assert (span.attributes or {})[names.ERROR_TYPE] == "ValueError"
    assert "secret" not in span.to_json()


async def test_a_streamed_answer_is_traced_to_its_end() -> None:
    """The span is open while pieces come."""
    recorded = Recorded()
    num_ended: list[int] = []

    async def pieces() -> Any:
        for piece in ("a", "b"):
            num_ended.append(len(recorded.spans))
            yield piece

    async def streaming(scope: Scope, receive: Receive, send: Send) -> None:
        await StreamingResponse(pieces())(scope, receive, send)

    await ask(streaming, recorded)
    assert (num_ended, len(recorded.spans)) == ([0, 0], 1)
