"""The alerts as a rules file of Prometheus."""

from typing import Any

import yaml

from ops.alerts.rules import ALERTS, Alert

HEADER = "# Written by `fastswitch dashboards`; the rules are in ops/alerts/rules.py.\n"


def rules_yaml() -> str:
    """The rules file. Check it with `promtool check rules`."""
    groups = {"groups": [{"name": "fastswitch", "rules": [_rule(alert) for alert in ALERTS]}]}
    return HEADER + yaml.safe_dump(groups, sort_keys=False, width=100, allow_unicode=True)


def _rule(alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expression,
        "for": alert.lasting,
        "labels": {"severity": alert.severity.value},
        "annotations": {"summary": alert.summary, "runbook": alert.runbook},
    }
