"""The served fleet on a real Prometheus: all that dashboards and alerts ask for is there."""

import asyncio
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ops.alerts.files import rules_yaml
from ops.alerts.rules import ALERTS
from ops.dashboards.boards import BOARDS
from tests.cluster.conftest import NUM_ENGINES, NUM_SEATS
from tests.cluster.program import HOST, Program
from tests.cluster.traffic import complete, completion
from tests.ops.dashboards.test_boards import as_grafana_asks, parts_of
from tests.ops.prometheus import Prometheus, needs_prometheus, prometheus, soon

pytestmark = pytest.mark.cluster

NUM_STREAMS = 2 * NUM_ENGINES * NUM_SEATS  # twice what runs at once
LONGEST_S = 300.0  # no request of these tests is on its way for longer
QUERIES = [as_grafana_asks(curve.query) for board in BOARDS for curve in board.curves()]
ALERTED = [part for alert in ALERTS for part in parts_of(alert)]


@needs_prometheus
async def test_every_panel_and_alert_has_series_of_the_served_fleet(
    server: Program, http: httpx.AsyncClient, pushed_to: str | None, tmp_path: Path
) -> None:
    """Scraped at the gateway and pushed by every process, while two tenants want all seats."""
    assert pushed_to is not None
    rules = tmp_path / "rules.yml"
    rules.write_text(rules_yaml())
    load = [
        asyncio.create_task(keep_asking(http, f"tenant-{number % 2}", number))
        for number in range(NUM_STREAMS)
    ]
    try:
        with prometheus(tmp_path, [f"{HOST}:{server.port}"], pushed_to, rules) as prom:
            await soon(lambda: assert_all_there(prom), "every query has series")
            await soon(lambda: assert_all_pushed(prom), "every process has pushed")
    finally:
        for task in load:
            task.cancel()
        await asyncio.gather(*load, return_exceptions=True)


@pytest.mark.parametrize("part", ["queue", "prefill", "decode"])
async def test_vllm_times_requests_by_its_engines_clock(
    server: Program, http: httpx.AsyncClient, part: str
) -> None:
    """The parts of a request's time are seconds: gateways and engines count, both or neither."""
    await complete(http, completion(max_tokens=4), tenant="timed")

    text = (await http.get("/metrics")).text
    name = f"vllm:request_{part}_time_seconds"
    sums = {
        sample.name: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name in (f"{name}_sum", f"{name}_count")
    }
    assert sums[f"{name}_count"] > 0
    assert 0 <= sums[f"{name}_sum"] / sums[f"{name}_count"] < LONGEST_S


async def keep_asking(http: httpx.AsyncClient, tenant: str, number: int) -> None:
    while True:
        await complete(http, completion(f"Request {number}", max_tokens=64), tenant=tenant)


def assert_all_there(prom: Prometheus) -> None:
    missing = [query for query in [*QUERIES, *ALERTED] if not prom.points(query)]
    assert missing == []


def assert_all_pushed(prom: Prometheus) -> None:
    pushed = prom.now('count by (job) (push_time_seconds{application="fastswitch"})')
    by_job = {each.labels["job"]: each.last for each in pushed}
    assert by_job.keys() == {"gateway", "router", "engine_replica", "engine"}
    # Not more exactly: what an earlier test has killed is there until the router sweeps.
    assert min(by_job["engine_replica"], by_job["engine"]) >= NUM_ENGINES
