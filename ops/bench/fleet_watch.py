"""The fleet as it tells of itself while a load runs: ``GET /v1/fairness``, read again and again.

Owns reading it and the times of the readings; what they say of fairness is in
``ops.bench.evenness``. A reading costs the server about what one short request does.
"""

import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import Event, Thread
from time import perf_counter, sleep

import msgspec

from ops.bench.errors import RequestFailedError, ServerStartError
from ops.bench.server import HOST

IDLE_TIMEOUT_S = 60.0
JOIN_TIMEOUT_S = 300.0
POLL_S = 0.2


class TenantState(msgspec.Struct, frozen=True):
    """One tenant, as far as the benchmarks read it."""

    weight: float
    service: float
    live: int
    running: int


class EngineState(msgspec.Struct, frozen=True):
    """One engine; ``switches`` are counts since it started."""

    running: int
    waiting: int
    max_num_seqs: int
    switches: dict[str, float]


class FleetState(msgspec.Struct, frozen=True):
    """One answer."""

    tenants: dict[str, TenantState]
    engines: dict[str, EngineState]

    @property
    def num_live(self) -> int:
        return sum(tenant.live for tenant in self.tenants.values())


@dataclass(frozen=True, slots=True)
class Glance:
    """The fleet at one moment, on the machine's monotonic clock."""

    at_s: float
    state: FleetState

    @property
    def num_running(self) -> int:
        return sum(engine.running for engine in self.state.engines.values())

    def is_backlogged(self, tenant: str) -> bool:
        """Whether it had more live than ran: then it wanted more than it was given."""
        state = self.state.tenants.get(tenant)
        return state is not None and state.live > state.running

    @property
    def service(self) -> float:
        return sum(tenant.service for tenant in self.state.tenants.values())

    def service_of(self, tenant: str) -> float:
        """Nought for one that has not been heard of."""
        state = self.state.tenants.get(tenant)
        return state.service if state is not None else 0.0


def look(port: int) -> Glance:
    with urllib.request.urlopen(f"http://{HOST}:{port}/v1/fairness", timeout=30) as response:
        body = response.read()
    return Glance(perf_counter(), msgspec.json.decode(body, type=FleetState))


@contextmanager
def watching(port: int, every_s: float) -> Iterator[list[Glance]]:
    """Look every so often, from a thread; on leaving, the list is complete."""
    glances: list[Glance] = []
    is_over = Event()

    def watch() -> None:
        while not is_over.wait(every_s):
            glances.append(look(port))

    thread = Thread(target=watch, name="fleet watch", daemon=True)
    thread.start()
    try:
        yield glances
    finally:
        is_over.set()
        thread.join()


def wait_until_idle(port: int) -> Glance:
    """Wait until nothing is left of a load whose clients have gone; the fleet at rest.

    Raises:
        RequestFailedError: something still is, after a minute.
    """
    deadline_s = perf_counter() + IDLE_TIMEOUT_S
    while num_live := (glance := look(port)).state.num_live:
        if perf_counter() > deadline_s:
            raise RequestFailedError(
                f"{num_live} requests still live {IDLE_TIMEOUT_S:g} s after their clients left"
            )
        sleep(POLL_S)
    return glance


def wait_for_engines(server: str, port: int, num_engines: int) -> None:
    """Wait until all engines have joined: a server takes requests from the first one on.

    Raises:
        ServerStartError: some have not, after minutes.
    """
    deadline_s = perf_counter() + JOIN_TIMEOUT_S
    while (num_joined := len(look(port).state.engines)) < num_engines:
        if perf_counter() > deadline_s:
            reason = f"{num_joined} of {num_engines} engines joined in {JOIN_TIMEOUT_S:g} s"
            raise ServerStartError(server, reason)
        sleep(POLL_S)


def between(glances: Sequence[Glance], begin_s: float, end_s: float) -> list[Glance]:
    """Those of a span of time, in order."""
    return [glance for glance in glances if begin_s <= glance.at_s <= end_s]


def switches(glances: Sequence[Glance], kind: str) -> int:
    """How many of one kind there were from the first glance to the last, on all engines."""
    first, last = (
        sum(engine.switches.get(kind, 0) for engine in glance.state.engines.values())
        for glance in (glances[0], glances[-1])
    )
    return round(last - first)
