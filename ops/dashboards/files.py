"""The folder that `fastswitch dashboards` writes: dashboards, alert rules, a sample to start from.

Owns the names of the files in it.
"""

from collections.abc import Mapping
from pathlib import Path

from ops.alerts.files import rules_yaml
from ops.dashboards.boards import BOARDS
from ops.dashboards.grafana import dashboard_json

RULES_FILE = "fastswitch-alerts.yml"

PROMETHEUS_YAML = f"""\
# A Prometheus server for FastSwitch Serve; `prometheus --config.file=prometheus.yml` here.
# Take one of the two ways. What is both scraped and pushed is stored twice, and shown once.
global:
  scrape_interval: 10s
  evaluation_interval: 10s

rule_files:
- {RULES_FILE}

scrape_configs:
# The gateways' own port. Behind one address, several gateways answer in turn: push then, or name
# each. With metrics.scrape_port: router and engines too, on the next free ports of their node.
- job_name: fastswitch
  static_configs:
  - targets: ['127.0.0.1:8000']

# With metrics.push_url: every process pushes here. honor_labels keeps their own job and instance.
- job_name: pushgateway
  honor_labels: true
  static_configs:
  - targets: ['127.0.0.1:9091']
"""


def files() -> Mapping[str, str]:
    """What the folder holds, by name."""
    boards = {f"{board.uid}.json": dashboard_json(board) for board in BOARDS}
    return {**boards, RULES_FILE: rules_yaml(), "prometheus.yml": PROMETHEUS_YAML}


def write_files(folder: Path) -> list[Path]:
    """Write them all, over those of an earlier version; makes ``folder`` if it is not there.

    Raises:
        OSError: it cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, text in files().items():
        path = folder / name
        path.write_text(text, encoding="utf-8")
        written.append(path)
    return written
