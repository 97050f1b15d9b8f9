"""What is asked of tracing, as plain values that cross processes.

Owns nothing else: who has no use for spans reads this without loading OpenTelemetry.
"""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TracingPlan:
    """Spans go to ``otlp_url``, as OTLP over HTTP. A share of requests is traced.

    A caller that sends a trace of its own has decided about its request itself.
    """

    otlp_url: str
    sample_share: float
