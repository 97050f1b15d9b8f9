"""The few forms of PromQL that our queries have.

Owns how series that describe the same thing are counted once. Every gateway tells the fleet's
numbers, and a gateway may be both scraped and pushed: so the largest of a fleet's number is taken,
and a gateway's own numbers are told apart by its label before they are summed.
"""

WINDOW = "$__rate_interval"  # Grafana's: at least four scrapes, and more when much time is shown


def fleet(metric: str, *by: str) -> str:
    """A number that the whole fleet has once, as every gateway tells it."""
    return f"max{_by(*by)} ({metric})"


def fleet_rate(metric: str, *by: str) -> str:
    """What a counter of the fleet gains per second."""
    return f"max{_by(*by)} (rate({metric}[{WINDOW}]))"


def gateways_rate(metric: str, *by: str) -> str:
    """What a counter of the gateways gains per second, over all of them.

    ``by`` has every label of the counter beside gateway and tenant.
    """
    own = [label for label in by if label not in ("gateway", "tenant")]
    once = f"max{_by('gateway', 'tenant', *own)} (rate({metric}[{WINDOW}]))"
    return f"sum{_by(*by)} ({once})"


def gateways_quantile(quantile: float, histogram: str, *by: str) -> str:
    """A quantile of a histogram of the gateways, over all of them."""
    rates = gateways_rate(f"{histogram}_bucket", *by, "le")
    return f"histogram_quantile({quantile}, {rates})"


def engines_quantile(quantile: float, histogram: str, where: str = "") -> str:
    """A quantile of a histogram of the engines, for each of them."""
    rates = f"max by (engine, le) (rate({histogram}_bucket{where}[{WINDOW}]))"
    return f"histogram_quantile({quantile}, {rates})"


def share(part: str, whole: str) -> str:
    """A part of a whole; 0 of nothing is 0, not a gap in the curve."""
    return f"({part}) / (({whole}) > 0) or ({part}) * 0"


def share_of_all(part: str) -> str:
    """Each series' part of their sum; 0 of nothing is 0."""
    return f"({part}) / on () group_left () (sum({part}) > 0) or ({part}) * 0"


def _by(*labels: str) -> str:
    return f" by ({', '.join(labels)})" if labels else ""
