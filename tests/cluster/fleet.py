"""The fleet as ``GET /v1/fairness`` shows it, and waiting until it looks as it should."""

import asyncio
from collections.abc import Callable
from time import monotonic

import httpx
import msgspec

POLL_S = 0.05


class Switches(msgspec.Struct):
    """Context switches of one engine since it started."""

    preemptions: int
    swaps_out: int
    swaps_in: int
    fallbacks: int
    recomputed_tokens: int
    pins: int
    pin_hits: int
    blocks_out: int
    adopted_blocks: int
    fetched_blocks: int


class Engine(msgspec.Struct):
    """``live`` are the requests that the router knows there; the rest is the engine's own count."""

    live: int
    running: int
    waiting: int
    max_num_seqs: int
    blocks_used: int
    host_blocks_used: int
    switches: Switches

    @property
    def is_idle(self) -> bool:
        return self.live == self.running == self.waiting == 0


class Tenant(msgspec.Struct):
    weight: float = 1.0
    service: float = 0.0
    output_tokens: int = 0
    live: int = 0
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None
    tokens_used_last_minute: int = 0
    tokens_reserved: int = 0
    rejected: int = 0


class Totals(msgspec.Struct):
    service: float
    output_tokens: int
    live: int


class Fleet(msgspec.Struct):
    """One answer of ``GET /v1/fairness``."""

    tenants: dict[str, Tenant]
    engines: dict[str, Engine]
    totals: Totals
    policy: str = ""
    refused_settings: str | None = None

    def tenant(self, name: str) -> Tenant:
        """A tenant nobody has heard of has received nothing."""
        return self.tenants.get(name, Tenant())

    @property
    def is_idle(self) -> bool:
        return self.totals.live == 0 and all(engine.is_idle for engine in self.engines.values())

    @property
    def is_full(self) -> bool:
        return all(engine.running == engine.max_num_seqs for engine in self.engines.values())

    def switched(self, name: str) -> int:
        """One of the ``Switches``, over all engines."""
        return sum(getattr(engine.switches, name) for engine in self.engines.values())


async def look(http: httpx.AsyncClient) -> Fleet:
    answer = await http.get("/v1/fairness")
    assert answer.status_code == 200, answer.text
    return msgspec.json.decode(answer.content, type=Fleet)


async def fleet_when(
    http: httpx.AsyncClient,
    condition: Callable[[Fleet], bool],
    what: str,
    *,
    within_s: float = 120.0,
) -> Fleet:
    """The fleet once ``condition`` holds for it; fails when it has not within its time.

    A gateway that is away for a moment counts as the condition not holding.
    """
    deadline_s = monotonic() + within_s
    fleet: Fleet | str = "no answer yet"
    while True:
        try:
            fleet = await look(http)
        except (httpx.HTTPError, AssertionError) as error:
            fleet = repr(error)
        if isinstance(fleet, Fleet) and condition(fleet):
            return fleet
        assert monotonic() < deadline_s, f"not within {within_s:g} s: {what}; last seen: {fleet}"
        await asyncio.sleep(POLL_S)
