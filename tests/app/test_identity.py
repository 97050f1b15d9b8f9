"""Identity: which tenant and conversation a request is served for, and who is not let in."""

import asyncio
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import anthropic
import httpx2
import openai
import pytest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.edge.identity import Identity, IdentityMiddleware, current_identity
from app.keys import ApiKey, hash_secret, new_key
from app.tenants import TenantDirectory
from app.tenants_file import KeyRecord, TenantsFile, add_key, edit_tenants_file, revoke_key

NOW = datetime(2026, 5, 1, tzinfo=UTC)


async def whoami(scope: Scope, receive: Receive, send: Send) -> None:
    """An app that answers with the identity it runs under, as `tenant/conversation`."""
    await asyncio.sleep(0)  # other requests run in between
    identity = current_identity.get(None)
    if identity is None:
        body = "nobody"
    else:
        assert scope["state"]["identity"] is identity
        body = f"{identity.tenant}/{identity.conversation}"
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body.encode()})


def client_of(app: ASGIApp) -> httpx2.AsyncClient:
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app), base_url="http://edge")


def open_edge() -> httpx2.AsyncClient:
    """An edge with keys off."""
    directory = TenantDirectory(TenantsFile(keys_required=False))
    return client_of(IdentityMiddleware(whoami, directory))


class KeyedEdge:
    """An edge with keys on, and one tenant, alice, with one key."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.key = new_key()
        self.now_s = 0.0
        kept = KeyRecord(id=self.key.key_id, hash=hash_secret(self.key.secret), created=NOW)
        edit_tenants_file(path, lambda before: add_key(before, "alice", kept))
        self.directory = TenantDirectory(path, clock=lambda: self.now_s)
        self.app = self.around(whoami)
        self.client = client_of(self.app)

    def around(self, app: ASGIApp) -> ASGIApp:
        return IdentityMiddleware(app, self.directory)

    def revoke(self) -> None:
        edit_tenants_file(self.path, lambda before: revoke_key(before, self.key.key_id, NOW))
        self.now_s += 1


@pytest.fixture
def edge(tmp_path: Path) -> KeyedEdge:
    return KeyedEdge(tmp_path / "tenants.yaml")


def bearer(key: ApiKey) -> dict[str, str]:
    return {"Authorization": f"Bearer {key.text}"}


@pytest.mark.parametrize("header", ["Authorization", "x-api-key"])
async def test_a_key_names_the_tenant(edge: KeyedEdge, header: str) -> None:
    """The tenant is the key's, sent as OpenAI's or as Anthropic's clients send it."""
    value = edge.key.text if header == "x-api-key" else f"bearer {edge.key.text}"

    answer = await edge.client.get("/v1/models", headers={header: value})

    assert answer.text == "alice/None"


@pytest.mark.parametrize("header", ["X-Tenant", "x-llm-d-inference-fairness-id"])
async def test_with_keys_on_no_header_claims_another_tenant(edge: KeyedEdge, header: str) -> None:
    """Whoever has a key is its tenant, whatever else the request says."""
    answer = await edge.client.get("/v1/models", headers={**bearer(edge.key), header: "bob"})

    assert answer.text == "alice/None"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-Tenant": "alice"},
        {"Authorization": "Bearer"},
        {"Authorization": "Basic YWxpY2U6"},
        {"Authorization": "Bearer sk-nobody"},
        {"Authorization": "Bearer " + new_key().text},
        {"x-api-key": "é"},
    ],
)
async def test_without_a_known_key_nobody_is_let_in(
    edge: KeyedEdge, headers: dict[str, str]
) -> None:
    """A missing or unknown key is 401 in OpenAI's shape, and the app never sees the request."""
    answer = await edge.client.post("/v1/completions", headers=encoded(headers))

    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_api_key")


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
async def test_anthropics_paths_refuse_in_anthropics_shape(edge: KeyedEdge, path: str) -> None:
    """Anthropic's clients understand the refusal too."""
    answer = await edge.client.post(path)

    assert answer.status_code == 401
    assert answer.json()["type"] == "error"
    assert answer.json()["error"]["type"] == "authentication_error"


async def test_a_revoked_key_stops_working_while_serving(edge: KeyedEdge) -> None:
    """From the next look at the file on, a revoked key is refused and told why."""
    assert (await edge.client.get("/v1/models", headers=bearer(edge.key))).status_code == 200

    edge.revoke()

    answer = await edge.client.get("/v1/models", headers=bearer(edge.key))
    assert answer.status_code == 401
    assert "was revoked on 2026-05-01" in answer.json()["error"]["message"]


async def test_the_openai_client_raises_its_own_error(edge: KeyedEdge) -> None:
    """An unmodified OpenAI client turns the refusal into its AuthenticationError."""
    client = openai.AsyncOpenAI(
        api_key="wrong", base_url="http://edge/v1", http_client=edge.client, max_retries=0
    )

    with pytest.raises(openai.AuthenticationError, match="not known"):
        await client.models.list()


async def test_the_anthropic_client_raises_its_own_error(edge: KeyedEdge) -> None:
    """An unmodified Anthropic client turns the refusal into its AuthenticationError."""
    client = anthropic.AsyncAnthropic(
        api_key="wrong", base_url="http://edge", http_client=edge.client, max_retries=0
    )

    with pytest.raises(anthropic.AuthenticationError, match="not known"):
        await client.messages.create(model="demo", max_tokens=1, messages=[])


@pytest.mark.parametrize("path", ["/health", "/metrics"])
async def test_probes_and_scrapers_need_no_key(edge: KeyedEdge, path: str) -> None:
    """Health and metrics are open, and run under no identity."""
    assert (await edge.client.get(path)).text == "nobody"


@pytest.mark.parametrize("path", ["/", "/v1/models", "/healthy", "/health/deep", "/v1/fairness"])
async def test_every_other_path_needs_a_key(edge: KeyedEdge, path: str) -> None:
    """What is not named as open is closed."""
    assert (await edge.client.get(path)).status_code == 401


async def test_open_paths_are_open_under_a_prefix_too(edge: KeyedEdge) -> None:
    """Where Serve mounts the application under a prefix, its health is still its health."""
    transport = httpx2.ASGITransport(edge.app, root_path="/llm")
    client = httpx2.AsyncClient(transport=transport, base_url="http://edge")

    assert (await client.get("/llm/health")).text == "nobody"
    assert (await client.get("/llm/v1/models")).status_code == 401


async def test_a_browsers_preflight_needs_no_key(edge: KeyedEdge) -> None:
    """OPTIONS reaches the app, which answers it without serving anybody."""
    assert (await edge.client.options("/v1/models")).text == "nobody"


@pytest.mark.parametrize(
    ("headers", "tenant"),
    [
        ({}, "default"),
        ({"X-Tenant": "alice"}, "alice"),
        ({"x-llm-d-inference-fairness-id": "bob"}, "bob"),
        ({"x-llm-d-inference-fairness-id": "bob", "X-Tenant": "alice"}, "alice"),
        ({"Authorization": "Bearer EMPTY"}, "default"),
    ],
)
async def test_with_keys_off_a_header_names_the_tenant(
    headers: dict[str, str], tenant: str
) -> None:
    """X-Tenant, or what llm-d's clients send, or everybody's tenant; keys are not looked at."""
    answer = await open_edge().get("/v1/models", headers=headers)

    assert answer.text == f"{tenant}/None"


@pytest.mark.parametrize("name", ["", "a b", "../x", "é", "x" * 65, "-x", 'a"}'])
async def test_a_name_that_no_tenant_may_have_is_refused(name: str) -> None:
    """A bad name is 400, with the header's name and what is allowed."""
    answer = await open_edge().get("/v1/models", headers=encoded({"X-Tenant": name}))

    assert answer.status_code == 400
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("x-tenant", "invalid_tenant")
    assert "1 to 64 letters" in error["message"]


async def test_the_conversation_is_the_session_header() -> None:
    """X-Session-Id names the conversation."""
    answer = await open_edge().get("/v1/models", headers={"X-Session-Id": "chat-7"})

    assert answer.text == "default/chat-7"


@pytest.mark.parametrize("session", ["", "a b", "a\tb", "é", "x" * 257])
async def test_a_conversation_that_is_no_name_is_refused(session: str) -> None:
    """An unprintable or over-long session id is 400, with what is allowed."""
    answer = await open_edge().get("/v1/models", headers=encoded({"X-Session-Id": session}))

    assert answer.status_code == 400
    assert "1 to 256 visible ASCII characters" in answer.json()["error"]["message"]


async def test_requests_at_once_keep_their_own_identity() -> None:
    """Fifty requests in flight together each run under their own tenant."""
    client = open_edge()
    names = [f"tenant-{number}" for number in range(50)]

    answers = await asyncio.gather(
        *(client.get("/v1/models", headers={"X-Tenant": name}) for name in names)
    )

    assert [answer.text for answer in answers] == [f"{name}/None" for name in names]


async def test_the_identity_ends_with_the_request() -> None:
    """Nothing of a request is left behind in the task that served it, also when it failed."""

    async def failing(_scope: Scope, _receive: Receive, _send: Send) -> None:
        assert current_identity.get() == Identity("alice", None)
        raise ConnectionError

    middleware = IdentityMiddleware(failing, TenantDirectory(TenantsFile(keys_required=False)))
    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "headers": [(b"x-tenant", b"alice")],
    }

    with pytest.raises(ConnectionError):
        await middleware(scope, nothing_received, nothing_sent)

    assert current_identity.get(None) is None


async def test_a_websocket_without_a_key_is_closed(edge: KeyedEdge) -> None:
    """A WebSocket is refused with HTTP's status as its close code, before it is accepted."""
    sent: list[Message] = []

    async def send(message: Message) -> None:
        sent.append(message)

    await edge.app(websocket_scope({}), nothing_received, send)

    [close] = sent
    assert (close["type"], close["code"]) == ("websocket.close", 4401)
    assert "no API key" in close["reason"]


async def test_a_websocket_with_a_key_runs_under_its_tenant(edge: KeyedEdge) -> None:
    """The rule for WebSockets is the one for requests."""
    seen: list[Identity] = []

    async def app(_scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(current_identity.get())

    scope = websocket_scope(bearer(edge.key))
    await edge.around(app)(scope, nothing_received, nothing_sent)

    assert seen == [Identity("alice", None)]


async def test_start_and_end_of_the_app_pass_through(edge: KeyedEdge) -> None:
    """Lifespan events belong to the app and to no tenant."""
    seen: list[str] = []

    async def app(scope: Scope, _receive: Receive, _send: Send) -> None:
        seen.append(scope["type"])

    await edge.around(app)({"type": "lifespan"}, nothing_received, nothing_sent)

    assert seen == ["lifespan"]


def websocket_scope(headers: dict[str, str]) -> dict[str, Any]:
    return {"type": "websocket", "path": "/v1/realtime", "headers": encoded(headers)}


def encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    """Headers as bytes, for values that a client's own encoding would refuse."""
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


async def nothing_received() -> Message:
    return {"type": "http.request"}


async def nothing_sent(_message: Message) -> None:
    return
