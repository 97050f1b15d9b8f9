"""What tenants ask for, from a seed or from a trace: arrivals in time, and backlogs.

Owns making the parts of a ``TenantLoad``; the same arguments give the same parts. A trace's
tokens and seconds are each multiplied by one constant, so proportions stay.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from random import Random

from ops.bench.tenant_load import Arrival, Backlog, Shape
from ops.bench.workload import Span, TraceRow

NUM_SHAPES = 512  # of a backlog, before they come round again


@dataclass(frozen=True, slots=True)
class Lengths:
    """Requests of uniformly distributed lengths."""

    prompt: Span
    output: Span

    @property
    def longest(self) -> int:
        return self.prompt.high + self.output.high

    def draw(self, random: Random) -> Shape:
        return Shape(
            random.randint(self.prompt.low, self.prompt.high),
            random.randint(self.output.low, self.output.high),
        )


def poisson(
    seed: str, tenant: str, per_s: float, duration_s: float, lengths: Lengths
) -> list[Arrival]:
    """Arrivals independent of each other, ``per_s`` on average."""
    random = Random(f"{seed} {tenant}")
    arrivals = []
    at_s = random.expovariate(per_s)
    while at_s < duration_s:
        arrivals.append(Arrival(round(at_s, 4), tenant, lengths.draw(random)))
        at_s += random.expovariate(per_s)
    return arrivals


def bursts(
    seed: str, tenant: str, size: int, every_s: float, duration_s: float, lengths: Lengths
) -> list[Arrival]:
    """``size`` arrivals at once, again and again, the first after half a pause."""
    random = Random(f"{seed} {tenant}")
    num_bursts = ceil(duration_s / every_s - 0.5)
    return [
        Arrival((number + 0.5) * every_s, tenant, lengths.draw(random))
        for number in range(num_bursts)
        for _ in range(size)
    ]


def drawn_shapes(seed: str, lengths: Lengths) -> list[Shape]:
    """The shapes of a backlog."""
    random = Random(seed)
    return [lengths.draw(random) for _ in range(NUM_SHAPES)]


def backlog(tenant: str, shapes: list[Shape], num_streams: int, open_s: float) -> Backlog:
    """Streams that open evenly over ``open_s``: twice as many open twice as fast."""
    starts_s = [round(open_s * number / num_streams, 4) for number in range(num_streams)]
    return Backlog(tenant, starts_s, shapes)


@dataclass(frozen=True, slots=True)
class TraceScale:
    """What a trace's token counts and seconds are multiplied by."""

    tokens: float
    seconds: float

    def shape(self, row: TraceRow) -> Shape:
        return Shape(
            max(1, int(row.prompt_tokens * self.tokens)),
            max(1, int(row.output_tokens * self.tokens)),
        )


def traced(
    rows: Sequence[TraceRow],
    scale: TraceScale,
    *,
    begin_s: float,
    duration_s: float,
    leave_out: Collection[str] = (),
) -> list[Arrival]:
    """The trace's arrivals of ``duration_s`` from ``begin_s`` on, both in scaled seconds."""
    if not rows:
        return []
    zero_s = rows[0].arrival_s
    timed = (((row.arrival_s - zero_s) * scale.seconds - begin_s, row) for row in rows)
    return [
        Arrival(round(at_s, 4), row.tenant, scale.shape(row))
        for at_s, row in timed
        if 0 <= at_s < duration_s and row.tenant not in leave_out
    ]


def demands(rows: Iterable[TraceRow], output_weight: float) -> Mapping[str, float]:
    """The service that each tenant of a trace wants altogether."""
    wanted: defaultdict[str, float] = defaultdict(float)
    for row in rows:
        wanted[row.tenant] += row.prompt_tokens + output_weight * row.output_tokens
    return dict(wanted)


def light_tenants(demand: Mapping[str, float]) -> frozenset[str]:
    """Those who want no more than an equal share of what all want together."""
    equal_share = sum(demand.values()) / len(demand)
    return frozenset(tenant for tenant, wanted in demand.items() if wanted <= equal_share)
