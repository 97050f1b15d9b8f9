"""API keys on a running server: the tenants file is edited, and taken up while it serves."""

from collections.abc import Iterator

import httpx
import pytest

from tests.cluster.fleet import fleet_when, look
from tests.cluster.program import MODEL, Program, wait_until
from tests.cluster.tenants import TAKEN_UP_WITHIN_S, Tenants, make_key, revoke_key
from tests.cluster.traffic import complete, completion

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def keyed(program: Program, tenants: Tenants) -> Iterator[Program]:
    """The server while it asks for keys."""
    with tenants.requiring_keys(program):
        yield program


def ask(program: Program, **headers: str) -> httpx.Response:
    return httpx.post(
        f"{program.url}/v1/completions", json=completion(max_tokens=2), headers=headers, timeout=60
    )


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def refusal(answer: httpx.Response) -> str:
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"
    error = answer.json()["error"]
    assert error["code"] == "invalid_api_key"
    message: str = error["message"]
    return message


# First: the fixture of the others lasts until the end of this file.
async def test_where_keys_are_off_the_header_names_the_tenant(
    server: Program, http: httpx.AsyncClient
) -> None:
    """X-Tenant says whom a request is charged to, and without it that is the default tenant."""
    before = await look(http)

    await complete(http, completion(max_tokens=3), tenant="named")
    answer = await http.post("/v1/completions", json=completion(max_tokens=4))

    assert answer.json()["model"] == MODEL
    await fleet_when(
        http,
        lambda fleet: all(
            fleet.tenant(tenant).output_tokens == before.tenant(tenant).output_tokens + tokens
            for tenant, tokens in (("named", 3), ("default", 4))
        ),
        "both are charged",
    )


def test_a_request_without_a_key_is_told_how_to_send_one(keyed: Program) -> None:
    """Without a key the answer is 401 and says which header it belongs into."""
    assert "Authorization: Bearer" in refusal(ask(keyed))


def test_an_unknown_key_is_refused_without_being_repeated(keyed: Program) -> None:
    """A key nobody has is refused, and the answer does not hold it."""
    key = "fs-000000000000-notakey"

    message = refusal(ask(keyed, **bearer(key)))

    assert "not known" in message
    assert key not in message


def test_a_header_does_not_make_a_tenant_where_keys_are_required(keyed: Program) -> None:
    """X-Tenant opens nothing once keys are required."""
    refusal(ask(keyed, **{"X-Tenant": "light"}))


async def test_a_new_key_serves_and_is_charged_to_its_tenant(
    keyed: Program, tenants: Tenants, http: httpx.AsyncClient
) -> None:
    """A key made while the server runs works within seconds, for its tenant and nobody else."""
    key = make_key(tenants.path, "keyed")
    wait_until(
        lambda: ask(keyed, **bearer(key)).status_code == 200,
        "the new key works",
        within_s=TAKEN_UP_WITHIN_S,
    )
    before = await fleet_when(
        http, lambda fleet: fleet.tenant("keyed").output_tokens == 2, "that request is charged"
    )

    answer = ask(keyed, **bearer(key), **{"X-Tenant": "light"})

    assert answer.status_code == 200
    after = await fleet_when(
        http,
        lambda fleet: fleet.tenant("keyed").output_tokens == 4,
        "the request is charged to the key's tenant",
    )
    assert after.tenant("light").service == before.tenant("light").service


def test_anthropics_header_carries_a_key_too(keyed: Program, tenants: Tenants) -> None:
    """x-api-key, which Anthropic's client sends, is as good as a bearer token."""
    assert ask(keyed, **{"x-api-key": tenants.operator_key}).status_code == 200


def test_a_revoked_key_is_refused_while_the_server_runs(keyed: Program, tenants: Tenants) -> None:
    """A key taken back stops to work within seconds, and its holder is told why."""
    key = make_key(tenants.path, "leaving")
    wait_until(
        lambda: ask(keyed, **bearer(key)).status_code == 200,
        "the new key works",
        within_s=TAKEN_UP_WITHIN_S,
    )

    revoke_key(tenants.path, key)

    wait_until(
        lambda: ask(keyed, **bearer(key)).status_code != 200,
        "the revoked key is refused",
        within_s=TAKEN_UP_WITHIN_S,
    )
    assert "was revoked" in refusal(ask(keyed, **bearer(key)))


def test_a_broken_file_leaves_the_old_keys_in_force(keyed: Program, tenants: Tenants) -> None:
    """An edit that breaks the file changes nothing: known keys serve, no key does not."""
    good = tenants.path.read_text()
    try:
        tenants.path.write_text("keys_required: perhaps\n")
        refusal(ask(keyed))
        assert ask(keyed, **bearer(tenants.operator_key)).status_code == 200
    finally:
        tenants.path.write_text(good)


def test_probes_and_scrapers_need_no_key(keyed: Program) -> None:
    """/health and /metrics are open, /v1/fairness is not."""
    assert httpx.get(f"{keyed.url}/health").status_code == 200
    assert httpx.get(f"{keyed.url}/metrics", timeout=60).status_code == 200
    refusal(httpx.get(f"{keyed.url}/v1/fairness"))
