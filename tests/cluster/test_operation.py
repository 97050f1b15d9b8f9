"""What an operator relies on: health, metrics, a burst, and that nothing is open to the network."""

import asyncio
from ipaddress import ip_address

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.cluster.fleet import look
from tests.cluster.program import HAPROXY, HOST, MODEL, POLL_S, Program
from tests.cluster.traffic import complete, completion

pytestmark = pytest.mark.cluster

COLLECTED_WITHIN_S = 60.0


async def test_health_is_200_while_engines_serve(server: Program, http: httpx.AsyncClient) -> None:
    """/health answers 200 on a fleet with engines."""
    answer = await http.get("/health")

    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


async def test_a_burst_of_requests_is_answered_whole(
    server: Program, http: httpx.AsyncClient
) -> None:
    """Of 500 requests at once, many times what runs at a time, every single one is answered."""
    before = await look(http)

    answers = await asyncio.gather(
        *(
            complete(http, completion(f"Request {number}", max_tokens=4), tenant="burst")
            for number in range(500)
        )
    )

    assert all(answers)
    after = await look(http)
    assert after.engines.keys() == before.engines.keys()


async def test_metrics_are_prometheus(server: Program, http: httpx.AsyncClient) -> None:
    """/metrics parses as Prometheus reads it, and counts a tenant's requests and tokens."""
    await complete(http, completion(max_tokens=6), tenant="measured")

    async with asyncio.timeout(COLLECTED_WITHIN_S):
        # The gateway fetches the fleet's numbers every few seconds.
        while ("fastswitch_tenant_service_total", "measured") not in (read := await metrics(http)):
            await asyncio.sleep(POLL_S)

    assert read["fastswitch_router_up", None] == 1
    assert read["fastswitch_output_tokens_total", "measured"] == 6
    assert read["fastswitch_tenant_service_total", "measured"] > 0


async def metrics(http: httpx.AsyncClient) -> dict[tuple[str, str | None], float]:
    """Samples by name and tenant; of several with the same, the last."""
    answer = await http.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    return {
        (sample.name, sample.labels.get("tenant")): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def test_only_this_machine_can_connect(server: Program) -> None:
    """HAProxy, its statistics included, the gateway and all else listen on the loopback alone."""
    listening = {
        (part.pid, connection.laddr.ip, connection.laddr.port)
        for part in server.processes()
        for connection in part.net_connections("tcp")
        if connection.status == "LISTEN"
    }

    # One that was told to reload lingers beside its successor while it has connections.
    haproxies = {haproxy.pid for haproxy in server.parts(HAPROXY)}
    assert haproxies & {pid for pid, *at in listening if at == [HOST, server.port]}
    assert [socket for socket in listening if not is_loopback(socket[1])] == []


def is_loopback(address: str) -> bool:
    return ip_address(address.removeprefix("::ffff:")).is_loopback


def test_the_ready_line_has_all_one_needs(server: Program) -> None:
    """The program prints its address, a curl to paste that names the model, and the dashboard."""
    assert f"ready  {server.url}" in server.said
    assert f"curl -N {server.url}/v1/chat/completions" in server.said
    assert f'"model": "{MODEL}"' in server.said
    assert f"dashboard  http://{HOST}:" in server.said
    assert "waiting for" in server.said
