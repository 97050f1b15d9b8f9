"""Grafana dashboards and what Prometheus needs for them, written by `fastswitch dashboards DIR`."""
