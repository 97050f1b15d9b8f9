"""What became of one request, as OpenTelemetry spans; beside ops.metrics what others import."""
