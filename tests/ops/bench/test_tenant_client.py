"""The client of several tenants sends what is due, keeps backlogs going and cuts off at the end."""

import asyncio
import gc
from collections.abc import Iterator
from typing import Any

import pytest

from ops.bench import tenant_client
from ops.bench.errors import RequestFailedError
from ops.bench.tenant_client import TenantClient
from ops.bench.tenant_load import (
    Answer,
    Arrival,
    Backlog,
    Shape,
    TenantLoad,
    TenantLoadResult,
    put_tenant_load,
)
from tests.ops.bench.stand_in_server import (
    HOST,
    STREAM_END,
    STREAM_HEAD,
    chunk,
    end,
    event,
    serving,
    tokens,
)

SHORT = Shape(prompt_tokens=4, output_tokens=3)
LONG = Shape(prompt_tokens=4, output_tokens=1000)
REFUSAL = b"HTTP/1.1 429 Too Many Requests\r\ncontent-length: 2\r\n\r\n{}"


@pytest.fixture(autouse=True)
def _collect_garbage_again() -> Iterator[None]:
    yield
    gc.enable()  # the client stops it for the rest of its process, which here is ours


async def reply(body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
    """Three tokens in two events; of a long request the first alone, and no end."""
    writer.write(STREAM_HEAD + chunk(tokens("a")))
    await writer.drain()
    if body["max_tokens"] == LONG.output_tokens:
        return
    writer.write(chunk(tokens("bc")) + chunk(end(3)) + STREAM_END)


def make_load(port: int, **parts: Any) -> TenantLoad:
    return TenantLoad(HOST, port, "m", seed="0", **{"duration_s": 0.2, "patience_s": 0.05, **parts})


async def run(load: TenantLoad) -> TenantLoadResult:
    return await TenantClient(load).run()


def of(result: TenantLoadResult, tenant: str) -> list[Answer]:
    return [answer for answer in result.answers if answer.tenant == tenant]


async def test_an_arrival_is_sent_when_it_is_due_whatever_is_open() -> None:
    """Open loop: one that has no end does not hold up the next."""
    arrivals = [Arrival(0.0, "quiet", LONG), Arrival(0.05, "quiet", SHORT)]
    async with serving(reply) as server:
        result = await run(make_load(server.port, arrivals=arrivals))

    long, short = sorted(result.answers, key=lambda answer: answer.due_s)
    assert (len(short.events_s), short.num_tokens, short.status) == (2, 3, 200)
    assert short.events_s[0] >= short.due_s == 0.05
    assert (len(long.events_s), long.num_tokens, long.is_finished) == (1, None, False)


async def test_a_backlog_keeps_all_its_streams_busy_until_the_end() -> None:
    """Each stream sends its next request when its last has ended; no prompt comes twice."""
    backlog = Backlog("flood", [0.0, 0.0, 0.0], [SHORT, Shape(5, 3)])
    async with serving(reply) as server:
        result = await run(make_load(server.port, backlogs=[backlog]))

    prompts = [tuple(body["prompt"]) for body in server.bodies]
    assert len(result.answers) > 3
    assert server.most_open <= 3
    assert len({*prompts}) == len(prompts)
    assert {len(prompt) for prompt in prompts} == {4, 5}


async def test_the_end_is_when_arrivals_are_answered_or_patience_has_run_out() -> None:
    """A backlog goes on while a tenant waits for an answer, but not for ever."""
    waits = Arrival(0.0, "quiet", LONG)
    async with serving(reply) as server:
        answered = await run(make_load(server.port, backlogs=[Backlog("f", [0.0], [SHORT])]))
        waited = await run(make_load(server.port, arrivals=[waits], patience_s=0.3))

    assert 0.2 <= answered.cut_s < 0.4
    assert waited.cut_s >= 0.5


async def test_each_request_says_whose_it_is() -> None:
    """The tenant is in a header, beside those that a load adds for it."""
    load = {
        "arrivals": [Arrival(0.0, "quiet", SHORT), Arrival(0.0, "other", SHORT)],
        "headers": {"quiet": {"X-Vllm-Priority": "3"}},
    }
    async with serving(reply) as server:
        await run(make_load(server.port, **load))

    heads = sorted(server.heads, key=lambda head: "other" in head)
    assert "X-Tenant: quiet" in heads[0]
    assert "X-Vllm-Priority: 3" in heads[0]
    assert "X-Tenant: other" in heads[1]
    assert "Priority" not in heads[1]


async def test_a_refusal_is_counted_and_its_stream_comes_again_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No storm of retries: a refused stream pauses."""

    async def refuse(_body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(REFUSAL)

    monkeypatch.setattr(tenant_client, "RETRY_S", 0.15)
    async with serving(refuse) as server:
        result = await run(make_load(server.port, backlogs=[Backlog("flood", [0.0], [SHORT])]))

    assert [answer.status for answer in result.answers] == [429, 429]
    assert all(answer.is_rejected for answer in result.answers)


async def test_an_answer_that_breaks_off_fails_the_load() -> None:
    """Numbers of a load with broken requests would mean nothing."""

    async def fail(_body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(event(error={"message": "engine died"})) + STREAM_END)

    async with serving(fail) as server:
        with pytest.raises(RequestFailedError, match="engine died"):
            await run(make_load(server.port, arrivals=[Arrival(0.0, "quiet", SHORT)]))


async def test_a_server_that_is_gone_fails_the_load() -> None:
    """A connection that cannot be made ends the load at once, in a process of its own too."""
    async with serving(reply) as server:
        port = server.port
    with pytest.raises(RequestFailedError, match="111"):
        put_tenant_load(make_load(port, backlogs=[Backlog("flood", [0.0], [SHORT])]))


async def test_the_load_comes_from_a_process_of_its_own() -> None:
    """What the client's process saw comes back whole."""
    load_parts = {"arrivals": [Arrival(0.0, "quiet", SHORT)]}
    async with serving(reply) as server:
        load = make_load(server.port, **load_parts, patience_s=5)
        result = await asyncio.to_thread(put_tenant_load, load)

    [answer] = of(result, "quiet")
    assert (answer.num_tokens, answer.is_rejected) == (3, False)
