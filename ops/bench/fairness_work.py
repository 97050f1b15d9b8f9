"""The loads of ``bench fairness``: what the quiet tenants, the neighbour and the rest ask for.

Owns what "just as full" and "32 times" mean. The neighbour is a backlog: so many streams, each
with one request open at any time. Behaved, it has as many as the engines have sequence slots,
less those that the quiet tenants are expected to take: the engines are full, nothing of its waits
for long, and a quiet request finds a free slot. Flooding, it has ``FLOOD`` times as many. Both
open their streams over ``OPEN_S``, inside the measured part, so a flood also comes 32 times as
fast; what comes first counts like all else.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol

from app.errors import UsageError
from app.settings import AppArgs
from ops.bench.errors import TraceError
from ops.bench.server import HOST, Server
from ops.bench.tenant_load import Arrival, Backlog, Shape, TenantLoad
from ops.bench.tenant_work import (
    Lengths,
    TraceScale,
    backlog,
    demands,
    drawn_shapes,
    light_tenants,
    poisson,
    traced,
)
from ops.bench.workload import Span, TraceRow, fitting, read_trace

QUIET, NEIGHBOUR = "quiet", "neighbour"
FLOOD = 32
OPEN_S = 3.0  # about what a request takes in a full batch: streams then open as fast as they turn
PATIENCE_S = 10.0
QUIET_LENGTHS = Lengths(Span(16, 64), Span(8, 32))
NEIGHBOUR_LENGTHS = Lengths(Span(32, 128), Span(64, 192))
# Unlike in prompt, output and pace, so that equal turns or equal counts would not be equal service.
EQUALS = {
    "long-out": Lengths(Span(16, 32), Span(128, 192)),
    "long-in": Lengths(Span(256, 384), Span(8, 32)),
    "even": Lengths(Span(64, 128), Span(32, 96)),
    "short": Lengths(Span(8, 32), Span(8, 32)),
}
WARM_UP_S = 3.0
# Streams of a tenant that always wants more, for each slot: were it one, a tenant that has every
# slot for a moment would want no more in that moment.
MORE = 2


@dataclass(frozen=True, slots=True)
class Contention:
    """Who wants what in one repeat.

    ``quiet`` are the tenants whose TTFT is told; ``arrivals`` are theirs and those of tenants
    that are neither quiet nor the neighbour.
    """

    arrivals: Sequence[Arrival]
    quiet: Collection[str]
    neighbour: str
    shapes: list[Shape]

    def alone(self) -> list[Arrival]:
        return [arrival for arrival in self.arrivals if arrival.tenant in self.quiet]


class Work(Protocol):
    """Where the requests of the quiet tenants, the neighbour and the rest come from."""

    @property
    def quiet(self) -> frozenset[str]: ...

    def contention(self, seed: str, number: int, duration_s: float) -> Contention:
        """What is wanted in one repeat; the same arguments give the same."""

    def described(self) -> Mapping[str, Any]:
        """For the result."""


@dataclass(frozen=True, slots=True)
class SeededWork:
    """One quiet tenant, its arrivals drawn one by one, beside one neighbour."""

    quiet_per_s: float

    @property
    def quiet(self) -> frozenset[str]:
        return frozenset({QUIET})

    def described(self) -> Mapping[str, Any]:
        return {"quiet_rps": self.quiet_per_s, "trace": None}

    def contention(self, seed: str, number: int, duration_s: float) -> Contention:
        name = f"{seed} {number}"
        return Contention(
            poisson(name, QUIET, self.quiet_per_s, duration_s, QUIET_LENGTHS),
            self.quiet,
            NEIGHBOUR,
            drawn_shapes(f"{name} {NEIGHBOUR}", NEIGHBOUR_LENGTHS),
        )


@dataclass(frozen=True, slots=True)
class TracedWork:
    """All of a trace's tenants; the one that wants most is the neighbour and always wants more.

    Quiet are those that want no more than an equal share. Each repeat plays the next part.
    """

    trace: str
    rows: Sequence[TraceRow]
    scale: TraceScale
    neighbour: str
    quiet: frozenset[str]

    def described(self) -> Mapping[str, Any]:
        return {
            "trace": self.trace,
            "token_scale": self.scale.tokens,
            "time_scale": self.scale.seconds,
            "neighbour": self.neighbour,
            "quiet_tenants": len(self.quiet),
        }

    def contention(self, _seed: str, number: int, duration_s: float) -> Contention:
        arrivals = traced(
            self.rows,
            self.scale,
            begin_s=number * duration_s,
            duration_s=duration_s,
            leave_out={self.neighbour},
        )
        shapes = [self.scale.shape(row) for row in self.rows if row.tenant == self.neighbour]
        return Contention(arrivals, self.quiet, self.neighbour, shapes)


def read_work(
    trace: Path, scale: TraceScale, settings: AppArgs, max_model_len: int, needed_s: float
) -> TracedWork:
    """The trace's work.

    Raises:
        TraceError: it cannot be read, or does not hold what is needed.
    """
    rows = fitting(read_trace(trace), int(max_model_len / scale.tokens))
    demand = demands(rows, settings.fairness.output_weight / settings.fairness.input_weight)
    if len(demand) < 2 or "" in demand:
        raise TraceError(trace, "requests of at least two tenants are needed")
    lasts_s = (rows[-1].arrival_s - rows[0].arrival_s) * scale.seconds
    if lasts_s < needed_s:
        raise TraceError(
            trace, f"lasts {lasts_s:.0f} s at this --time-scale, {needed_s:.0f} s are needed"
        )
    neighbour = max(demand, key=lambda tenant: demand[tenant])
    return TracedWork(trace.name, rows, scale, neighbour, light_tenants(demand) - {neighbour})


def check_fits(lengths: Collection[Lengths], max_model_len: int) -> None:
    """Refuse what the model cannot take.

    Raises:
        UsageError: the longest of these requests is too long for it.
    """
    longest = max(one.longest for one in lengths)
    if longest > max_model_len:
        raise UsageError(
            f"requests of up to {longest} tokens are wanted, the model takes {max_model_len}"
        )


def equal_backlogs(seed: str, num_slots: int) -> list[Backlog]:
    """Tenants that each want more than every slot there is."""
    return [
        backlog(tenant, drawn_shapes(f"{seed} {tenant}", lengths), MORE * num_slots, 0.0)
        for tenant, lengths in EQUALS.items()
    ]


def load_of(
    server: Server,
    seed: str,
    duration_s: float,
    arrivals: Sequence[Arrival] = (),
    backlogs: Sequence[Backlog] = (),
    headers: Mapping[str, Mapping[str, str]] = MappingProxyType({}),
    patience_s: float = PATIENCE_S,
) -> TenantLoad:
    return TenantLoad(
        host=HOST,
        port=server.port,
        model=server.model,
        seed=seed,
        duration_s=duration_s,
        patience_s=patience_s,
        arrivals=list(arrivals),
        backlogs=list(backlogs),
        headers={tenant: dict(each) for tenant, each in headers.items()},
    )
