"""docs/metrics.md is what the code says, and what the code says is what Prometheus likes."""

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from ops.dashboards.boards import BOARDS
from ops.metrics.catalogue import own_metrics
from ops.metrics_page import PAGE, all_sections, page
from tests.ops.living_fleet import LivingFleet
from tests.ops.prometheus import needs_prometheus, promtool


def test_the_page_is_current() -> None:
    """A metric that was added, renamed or taken away is so on the page too."""
    assert PAGE.read_text(encoding="utf-8") == page(all_sections()), (
        "run: python -m ops.metrics_page"
    )


def test_every_metric_says_what_it_is() -> None:
    """In a sentence, under our prefix; counters by their unit, and no name twice."""
    metrics = [metric for section in own_metrics().values() for metric in section]

    assert len({metric.name for metric in metrics}) == len(metrics)
    for metric in metrics:
        assert metric.name.startswith("fastswitch_")
        assert metric.text.endswith(".")
        assert metric.name.endswith("_total") == (metric.kind == "counter")


@needs_prometheus
@pytest.mark.parametrize("process", ["gateway", "router", "replica"])
def test_promtool_likes_what_a_process_tells(process: str) -> None:
    """Names, units and texts as Prometheus' conventions want them, with all series there."""
    registry: CollectorRegistry = getattr(LivingFleet(), process)

    promtool("check", "metrics", stdin=generate_latest(registry).decode())


def test_every_dashboard_asks_for_metrics_that_there_are() -> None:
    """Each metric of ours that a query names is on the page."""
    text = PAGE.read_text(encoding="utf-8")
    names = {
        word.removesuffix("_bucket")
        for board in BOARDS
        for curve in board.curves()
        for word in curve.query.replace("{", " ").replace("(", " ").replace("[", " ").split()
        if word.startswith(("fastswitch_", "vllm:"))
    }

    assert names
    assert {name for name in names if f"`{name.rstrip(')')}`" not in text} == set()
