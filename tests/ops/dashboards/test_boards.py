"""Every panel's query returns data on a real Prometheus that a fleet under load is read into."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from app.ports import free_port
from ops.alerts.rules import ALERTS, Alert
from ops.dashboards.board import Board, Curve, Graph, Unit
from ops.dashboards.boards import BOARDS
from ops.dashboards.files import RULES_FILE, write_files
from ops.dashboards.grafana import dashboard_json
from ops.dashboards.promql import WINDOW
from tests.ops.living_fleet import ENGINES, TENANTS, LivingFleet, told
from tests.ops.prometheus import (
    HOST,
    Prometheus,
    needs_prometheus,
    prometheus,
    pushgateway,
    soon,
)

CURVES = [
    pytest.param(board, graph, curve, id=f"{board.uid}: {graph.title}: {curve.legend}")
    for board in BOARDS
    for graph in board.graphs
    for curve in graph.curves
]
# A window of four scrapes, as Grafana would choose.
RATE_WINDOW = "4s"


@pytest.fixture(scope="module")
def fleet() -> LivingFleet:
    return LivingFleet()


@pytest.fixture(scope="module")
def server(fleet: LivingFleet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that scrapes a living fleet's gateway, and its Pushgateway."""
    folder, port = tmp_path_factory.mktemp("prometheus"), free_port(HOST)
    write_files(folder / "written")
    rules = folder / "written" / RULES_FILE
    with (
        pushgateway() as pushed_to,
        told(fleet, pushed_to, port),
        prometheus(folder, [f"{HOST}:{port}"], pushed_to, rules) as server,
    ):
        yield server


def as_grafana_asks(query: str) -> str:
    return query.replace(WINDOW, RATE_WINDOW).replace("$engine", ".*")


@needs_prometheus
@pytest.mark.parametrize(("board", "graph", "curve"), CURVES)
async def test_every_panels_query_returns_data(
    server: Prometheus, board: Board, graph: Graph, curve: Curve
) -> None:
    """Numbers, under all the labels that the legend names, within what the unit allows."""
    query = as_grafana_asks(curve.query)

    await soon(lambda: assert_shape(server, query, curve, graph.unit), f"{board.uid} has data")


def assert_shape(server: Prometheus, query: str, curve: Curve, unit: Unit) -> None:
    series = server.curve(query)
    assert series, f"no data: {query}"
    named = set(re.findall(r"\{\{(\w+)\}\}", curve.legend))
    for each in series:
        assert each.labels.keys() == named, f"{each.labels} for the legend {curve.legend}"
        assert min(each.values) >= 0
        if unit is Unit.SHARE:
            assert max(each.values) <= 1.000001
    if "tenant" in named:
        assert {each.labels["tenant"] for each in series} >= set(TENANTS)
    if curve.legend == "engines":
        assert series[0].last == len(ENGINES)


@needs_prometheus
@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
async def test_every_alert_is_about_series_that_there_are(server: Prometheus, alert: Alert) -> None:
    """The server evaluates the rule, on numbers of the fleet, and is not alarmed while it is well.

    An alert that asks for a metric of another name would be as quiet as one that has no reason.
    """

    def assert_evaluated() -> None:
        rule = rule_of(server, alert.name)
        assert (rule["health"], rule.get("lastError", "")) == ("ok", "")
        assert rule["state"] != "firing"

    def assert_has_numbers() -> None:
        assert [part for part in parts_of(alert) if not server.now(part)] == []

    await soon(assert_evaluated, f"{alert.name} is evaluated")
    await soon(assert_has_numbers, f"{alert.name} has numbers")


@needs_prometheus
async def test_an_alert_fires_on_the_server_when_its_state_is_provoked(
    server: Prometheus, fleet: LivingFleet
) -> None:
    """Copies that begin to fail are told with the engine and with what to do."""
    fleet.has_failing_copies = True

    def assert_fires() -> None:
        rule = rule_of(server, "FastSwitchFailedCopies")
        assert rule["state"] == "firing"
        assert {alert["labels"]["engine"] for alert in rule["alerts"]} == set(ENGINES)
        assert all(alert["annotations"]["runbook"] for alert in rule["alerts"])

    await soon(assert_fires, "the alert fires")


def parts_of(alert: Alert) -> list[str]:
    """What an alert looks at, in queries that have an answer also while all is well.

    A comparison says 0 or 1 instead of leaving out what is not so; of what is to be absent, or
    there without something else, each is asked for itself.
    """
    compared = re.sub(r"([<>]|==)", r"\1 bool", alert.expression)
    parts = re.split(r" unless on \(\) ", compared)
    return [re.sub(r"^absent\((.*)\)$", r"\1", part) for part in parts]


def rule_of(server: Prometheus, alert: str) -> Any:
    [group] = server.get("rules")["groups"]
    [rule] = [rule for rule in group["rules"] if rule["name"] == alert]
    return rule


@needs_prometheus
async def test_pushed_metrics_keep_their_own_job_and_instance(server: Prometheus) -> None:
    """By deployment and replica they are told apart, not by the Pushgateway's address."""

    def assert_told_apart() -> None:
        found = server.now('process_start_time_seconds{application="fastswitch"}')
        assert {(each.labels["job"], each.labels["instance"]) for each in found} == {
            ("gateway", "gateway-1"),
            ("router", "router-1"),
            ("engine_replica", "engine_replica-1"),
        }

    await soon(assert_told_apart, "all have pushed")


@needs_prometheus
async def test_what_is_scraped_and_pushed_is_counted_once(server: Prometheus) -> None:
    """A gateway that is read both ways shows the tokens it has made, not twice as many."""
    [graph] = [graph for graph in BOARDS[0].graphs if graph.title == "Tokens and goodput"]
    [curve] = [curve for curve in graph.curves if curve.legend == "output"]
    once = f'sum(rate(fastswitch_output_tokens_total{{job="fastswitch"}}[{RATE_WINDOW}]))'

    def assert_once() -> None:
        [shown], [scraped] = server.now(as_grafana_asks(curve.query)), server.now(once)
        assert scraped.last > 0
        assert shown.last < 1.5 * scraped.last

    await soon(assert_once, "both ways have been read")


@pytest.mark.parametrize("board", BOARDS, ids=lambda board: board.uid)
def test_a_dashboard_is_whole(board: Board) -> None:
    """Every graph is a panel with its own place and number, and asks the chosen data source."""
    made = json.loads(dashboard_json(board))

    panels = made["panels"]
    assert [panel["title"] for panel in panels] == [graph.title for graph in board.graphs]
    assert len({panel["id"] for panel in panels}) == len(panels)
    assert len({(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in panels}) == len(panels)
    asked = [target["expr"] for panel in panels for target in panel["targets"]]
    assert asked == [curve.query for curve in board.curves()]
    assert {panel["datasource"]["uid"] for panel in panels} == {"${datasource}"}
    names = [variable["name"] for variable in made["templating"]["list"]]
    assert names == ["datasource", *(variable.name for variable in board.variables)]


def test_dashboards_are_told_apart() -> None:
    """Grafana replaces a dashboard by one with the same uid."""
    assert len({board.uid for board in BOARDS}) == len(BOARDS)


def test_what_is_written_does_not_change_by_itself(tmp_path: Path) -> None:
    """Twice the same code writes twice the same files, so that they can be kept in git."""
    first, second = (write_files(tmp_path / name) for name in "ab")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
