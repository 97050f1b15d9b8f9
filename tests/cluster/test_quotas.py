"""Limits of tenants' own on a running server: nobody passes one, and nobody else feels it."""

import asyncio
from collections.abc import AsyncIterator

import httpx
import pytest

from app.tenants_file import TenantRecord, TenantsFile, edit_tenants_file
from tests.cluster.fleet import POLL_S, fleet_when, look
from tests.cluster.program import Program
from tests.cluster.tenants import TAKEN_UP_WITHIN_S, Tenants
from tests.cluster.traffic import COMPLETIONS, Stream, completion

pytestmark = pytest.mark.cluster

PROMPT = list(range(40, 50))
OUTPUT_TOKENS = 40
TOKENS = len(PROMPT) + OUTPUT_TOKENS
FITTING = 12  # requests of TOKENS that a minute has room for
AT_ONCE = 40
METERED, NARROW, OTHER = "metered", "narrow", "other"
LONG = 8000


@pytest.fixture
async def limited(
    server: Program, tenants: Tenants, http: httpx.AsyncClient
) -> AsyncIterator[Tenants]:
    """The server with a tenant of few tokens a minute and one of two requests at once."""
    limits = {
        METERED: TenantRecord(tokens_per_minute=FITTING * TOKENS + TOKENS // 2),
        NARROW: TenantRecord(max_concurrent=2),
    }
    await set_tenants(tenants, http, limits)
    yield tenants
    await set_tenants(tenants, http, {METERED: TenantRecord(), NARROW: TenantRecord()})


async def set_tenants(
    tenants: Tenants, http: httpx.AsyncClient, records: dict[str, TenantRecord]
) -> None:
    """Edit the file and return once the router goes by it."""

    def edit(before: TenantsFile) -> TenantsFile:
        return before.model_copy(update={"tenants": {**before.tenants, **records}})

    edit_tenants_file(tenants.path, edit)
    await fleet_when(
        http,
        lambda fleet: all(
            (fleet.tenant(name).tokens_per_minute, fleet.tenant(name).max_concurrent)
            == (record.tokens_per_minute, record.max_concurrent)
            for name, record in records.items()
        ),
        "the new limits are in force",
        within_s=TAKEN_UP_WITHIN_S,
    )


async def ask(
    http: httpx.AsyncClient, tenant: str, *, is_streamed: bool, **more: object
) -> httpx.Response:
    body = {**completion(PROMPT, max_tokens=OUTPUT_TOKENS), "stream": is_streamed, **more}
    return await http.post(COMPLETIONS, json=body, headers={"X-Tenant": tenant})


def is_refused(answer: httpx.Response, limit: str) -> bool:
    """Whether it is 429 with all that belongs to it; anything else but 200 fails."""
    if answer.status_code == 200:
        return False
    assert answer.status_code == 429, answer.text
    assert 1 <= int(answer.headers["retry-after"]) <= 61
    assert answer.headers["x-llm-d-request-dropped-reason"] == f"rejected-{limit}"
    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
    return True


async def test_however_many_come_at_once_a_minute_holds_no_more_than_its_limit(
    limited: Tenants, http: httpx.AsyncClient
) -> None:
    """As many as fit are served, streamed and not; the rest is told when to come again.

    Another tenant's requests, in between and just as many, are all served.
    """
    most = FITTING * TOKENS + TOKENS // 2
    rejected_before = (await look(http)).tenant(METERED).rejected
    calls = [
        asyncio.create_task(ask(http, tenant, is_streamed=bool(number % 2)))
        for number in range(AT_ONCE)
        for tenant in (METERED, OTHER)
    ]
    while not all(call.done() for call in calls):
        metered = (await look(http)).tenant(METERED)
        assert metered.tokens_used_last_minute + metered.tokens_reserved <= most
        await asyncio.sleep(POLL_S)
    answers = [call.result() for call in calls]

    assert not any(is_refused(answer, "") for answer in answers[1::2])
    refused = [is_refused(answer, "tokens-per-minute") for answer in answers[::2]]
    assert refused.count(False) == FITTING
    assert {number % 2 for number, is_one in enumerate(refused) if is_one} == {0, 1}
    after = await fleet_when(
        http,
        lambda fleet: fleet.tenant(METERED).tokens_used_last_minute == FITTING * TOKENS,
        "what was served is charged",
    )
    assert after.tenant(METERED).tokens_reserved == 0
    assert after.tenant(METERED).rejected == rejected_before + AT_ONCE - FITTING


async def test_a_request_past_the_limit_by_itself_need_not_come_again(
    limited: Tenants, http: httpx.AsyncClient
) -> None:
    """It is told what to change."""
    answer = await ask(http, METERED, is_streamed=True, max_tokens=FITTING * TOKENS * 2)

    assert is_refused(answer, "tokens-per-minute")
    assert answer.headers["x-should-retry"] == "false"
    assert "this request alone may take" in answer.json()["error"]["message"]


async def test_so_many_run_at_once_and_the_next_when_one_has_left(
    limited: Tenants, http: httpx.AsyncClient
) -> None:
    """Also one of several sequences is refused whole; a limit that is raised holds at once."""
    streams = [Stream(http, completion(max_tokens=LONG), tenant=NARROW) for _ in range(2)]
    await asyncio.gather(*(stream.begun() for stream in streams))

    assert is_refused(await ask(http, NARROW, is_streamed=True), "max-concurrent")
    assert is_refused(await ask(http, NARROW, is_streamed=False), "max-concurrent")
    await streams.pop().leave()
    await fleet_when(http, lambda fleet: fleet.tenant(NARROW).live == 1, "one has left")
    assert is_refused(
        await ask(http, NARROW, is_streamed=True, n=2, temperature=1), "max-concurrent"
    )
    await fleet_when(http, lambda fleet: fleet.tenant(NARROW).live == 1, "none of it runs")
    assert not is_refused(await ask(http, NARROW, is_streamed=True), "max-concurrent")

    await set_tenants(limited, http, {NARROW: TenantRecord(max_concurrent=3)})
    assert not is_refused(
        await ask(http, NARROW, is_streamed=False, n=2, temperature=1), "max-concurrent"
    )
    await streams.pop().leave()
