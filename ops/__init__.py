"""What an operator runs: metrics, dashboards, manifests and benchmarks."""
