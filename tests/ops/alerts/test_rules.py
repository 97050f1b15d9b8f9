"""Each alert fires in the state it is for, once that has lasted, and none in a fleet that is well.

Played by promtool with Prometheus' own engine, so that minutes take none.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from ops.alerts.files import rules_yaml
from ops.alerts.rules import ALERTS, Alert
from ops.metrics.push import PushTarget
from ops.metrics.stale_groups import MIN_STALE_S, SWEEP_EVERY_PUSHES
from tests.ops.prometheus import needs_prometheus, promtool

LASTING_MIN = 40
EVERY_MINUTE = range(LASTING_MIN)
STEADY = f"1+0x{LASTING_MIN}"
ZERO = f"0+0x{LASTING_MIN}"
FIRING = 'count without (severity, alertstate) (ALERTS{alertstate="firing"})'
PUSHED = 'push_time_seconds{application="fastswitch",instance="g1",job="gateway"}'
NEXT_PUSHED = PUSHED.replace("g1", "g2")
PUSH_S = PushTarget("").every_s
# A fleet that is well: series as Prometheus would have read them, a sample a minute.
WELL = {
    "fastswitch_router_up": STEADY,
    'fastswitch_engine_max_requests{engine="e1"}': f"8+0x{LASTING_MIN}",
    'fastswitch_requests_total{gateway="g1",tenant="a",outcome="stop"}': f"0+60x{LASTING_MIN}",
    'fastswitch_requests_total{gateway="g1",tenant="a",outcome="error"}': ZERO,
    'fastswitch_good_requests_total{gateway="g1",tenant="a"}': f"0+60x{LASTING_MIN}",
    'fastswitch_fleet_requests{state="in_line"}': ZERO,
    'fastswitch_tenant_service_total{tenant="a"}': f"0+500x{LASTING_MIN}",
    'fastswitch_tenant_service_total{tenant="b"}': f"0+500x{LASTING_MIN}",
    'fastswitch_tenant_entitled_share_ratio{tenant="a"}': f"0.5+0x{LASTING_MIN}",
    'fastswitch_tenant_entitled_share_ratio{tenant="b"}': f"0.5+0x{LASTING_MIN}",
    'fastswitch_tenant_requests{state="waiting",tenant="a"}': f"3+0x{LASTING_MIN}",
    'fastswitch_tenant_requests{state="waiting",tenant="b"}': f"3+0x{LASTING_MIN}",
    'fastswitch_engine_swap_stall_seconds_total{engine="e1"}': f"0+0.1x{LASTING_MIN}",
    'fastswitch_engine_lost_copies_total{engine="e1"}': ZERO,
    'fastswitch_engine_failed_copy_blocks_total{engine="e1"}': ZERO,
    'fastswitch_replica_engine_silence_seconds{engine="e1"}': f"0.1+0x{LASTING_MIN}",
    'fastswitch_router_busy_seconds_total{call="admit",instance="r1"}': f"0+6x{LASTING_MIN}",
    PUSHED: f"0+60x{LASTING_MIN}",
}


@dataclass(frozen=True)
class Ill:
    """What is other than well, from the beginning; None: the series is not there."""

    series: dict[str, str | None]
    labels: dict[str, str] = field(default_factory=dict)


ILL = {
    "FastSwitchNoMetrics": Ill({"fastswitch_router_up": None}),
    "FastSwitchNoEngine": Ill({'fastswitch_engine_max_requests{engine="e1"}': None}),
    "FastSwitchRouterDown": Ill({"fastswitch_router_up": ZERO}),
    "FastSwitchErrors": Ill(
        {
            'fastswitch_requests_total{gateway="g1",tenant="a",outcome="error"}': (
                f"0+2x{LASTING_MIN}"
            )
        }
    ),
    "FastSwitchGoodputLow": Ill(
        {'fastswitch_good_requests_total{gateway="g1",tenant="a"}': f"0+50x{LASTING_MIN}"}
    ),
    "FastSwitchFleetFull": Ill({'fastswitch_fleet_requests{state="in_line"}': STEADY}),
    "FastSwitchUnfairService": Ill(
        {'fastswitch_tenant_service_total{tenant="b"}': f"0+100x{LASTING_MIN}"}, {"tenant": "b"}
    ),
    "FastSwitchSwapStall": Ill(
        {'fastswitch_engine_swap_stall_seconds_total{engine="e1"}': f"0+2x{LASTING_MIN}"},
        {"engine": "e1"},
    ),
    "FastSwitchLostCopies": Ill(
        {'fastswitch_engine_lost_copies_total{engine="e1"}': f"0+1x{LASTING_MIN}"},
        {"engine": "e1"},
    ),
    "FastSwitchFailedCopies": Ill(
        {'fastswitch_engine_failed_copy_blocks_total{engine="e1"}': f"0+1x{LASTING_MIN}"},
        {"engine": "e1"},
    ),
    "FastSwitchEngineSilent": Ill(
        {'fastswitch_replica_engine_silence_seconds{engine="e1"}': f"40+60x{LASTING_MIN}"},
        {"engine": "e1"},
    ),
    "FastSwitchRouterBusy": Ill(
        {
            'fastswitch_router_busy_seconds_total{call="admit",instance="r1"}': (
                f"0+50x{LASTING_MIN}"
            )
        },
        {"instance": "r1"},
    ),
    "FastSwitchStoppedPushing": Ill(
        {PUSHED: ZERO}, {"application": "fastswitch", "instance": "g1", "job": "gateway"}
    ),
}


def play(
    folder: Path,
    series: dict[str, str],
    expected: dict[str, Any],
    looks_min: Iterable[int] = (LASTING_MIN - 5,),
) -> None:
    """Let promtool compare the alerts that fire in these minutes with those that are expected."""
    (folder / "rules.yml").write_text(rules_yaml())
    samples = [
        {"labels": "{}" if not labels else _text(labels), "value": 1}
        for labels in expected.values()
    ]
    test = {
        "rule_files": ["rules.yml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": name, "values": values} for name, values in series.items()
                ],
                "promql_expr_test": [
                    {
                        "expr": FIRING,
                        "eval_time": f"{minute}m",
                        "exp_samples": samples,
                    }
                    for minute in looks_min
                ],
            }
        ],
    }
    (folder / "test.yml").write_text(yaml.safe_dump(test))
    promtool("test", "rules", folder / "test.yml")


def _text(labels: dict[str, str]) -> str:
    return "{" + ",".join(f'{name}="{value}"' for name, value in labels.items()) + "}"


def test_every_alert_has_a_state_that_provokes_it() -> None:
    """None is without a test, and none is tested that is gone."""
    assert ILL.keys() == {alert.name for alert in ALERTS}


@needs_prometheus
def test_a_fleet_that_is_well_alarms_nobody(tmp_path: Path) -> None:
    """Not once in forty minutes of even service."""
    play(tmp_path, WELL, {}, EVERY_MINUTE)


@needs_prometheus
def test_a_crash_that_heals_pages_nobody(tmp_path: Path) -> None:
    """What the dead gateway has pushed is there, ever older, until the router removes it."""
    removed_min = math.ceil((MIN_STALE_S + SWEEP_EVERY_PUSHES * PUSH_S) / 60)
    alive_min = 5
    left = f"0+60x{alive_min} {60 * alive_min}+0x{removed_min} stale"

    play(tmp_path, {**WELL, PUSHED: left, NEXT_PUSHED: f"0+60x{LASTING_MIN}"}, {}, EVERY_MINUTE)


@needs_prometheus
@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_fires_in_the_state_it_is_for(tmp_path: Path, alert: Alert) -> None:
    """It, and no other, once the state has lasted, with the labels that say whom it is about."""
    ill = ILL[alert.name]
    series = {**WELL, **ill.series}

    play(
        tmp_path,
        {name: values for name, values in series.items() if values is not None},
        {alert.name: {"alertname": alert.name, **ill.labels}},
    )


@needs_prometheus
def test_promtool_accepts_the_rules(tmp_path: Path) -> None:
    """Names, expressions and templates are as Prometheus wants them."""
    path = tmp_path / "rules.yml"
    path.write_text(rules_yaml())
    assert f"{len(ALERTS)} rules found" in promtool("check", "rules", path)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_an_alert_says_what_to_do(alert: Alert) -> None:
    """Whoever is woken by it finds a first step in it, not only that something is wrong."""
    assert len(alert.runbook) > 100
    assert alert.runbook.endswith(".")
    assert "\n" not in alert.summary + alert.runbook
