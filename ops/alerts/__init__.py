"""Alert rules for Prometheus, each with what to do about it."""
