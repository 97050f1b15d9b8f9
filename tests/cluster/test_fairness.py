"""Shares of service between backlogged tenants, and who makes room for whom, on real engines."""

import asyncio
from collections.abc import Sequence
from statistics import linear_regression

import httpx
import pytest

from tests.cluster.conftest import NUM_ENGINES, NUM_SEATS
from tests.cluster.fleet import Fleet, fleet_when, look
from tests.cluster.program import POLL_S, Program
from tests.cluster.tenants import HEAVY, LIGHT
from tests.cluster.traffic import Stream, backlog, complete, completion

pytestmark = pytest.mark.cluster

# A tenant alone could fill both engines, also when some of its requests end while service is
# measured.
SEATS = NUM_ENGINES * NUM_SEATS
CROWD = SEATS + 8
LONG = 8000
WINDOW_UNITS = 120_000.0
FURTHER_WITHIN_S = 60.0


async def test_service_follows_the_weights(server: Program, http: httpx.AsyncClient) -> None:
    """Two tenants of weights 1 and 2, both always backlogged, are served 1:2 within 5 %."""
    async with (
        backlog(http, LIGHT, num_requests=CROWD, max_tokens=LONG),
        backlog(http, HEAVY, num_requests=CROWD, max_tokens=LONG),
    ):
        await all_served(http, (LIGHT, HEAVY))
        window = await watch(http, WINDOW_UNITS)
        assert are_backlogged(window[-1], (LIGHT, HEAVY))

    share = shares(window, (LIGHT, HEAVY))
    assert share[HEAVY] / share[LIGHT] == pytest.approx(2.0, rel=0.05)


async def test_a_tenant_back_from_idle_is_neither_starved_nor_owed(
    server: Program, http: httpx.AsyncClient
) -> None:
    """Who was away gets its share from its return on: not less, and nothing for the time before."""
    back = "back"
    await complete(http, completion(max_tokens=20), tenant=back)
    async with (
        backlog(http, LIGHT, num_requests=CROWD, max_tokens=LONG),
        backlog(http, HEAVY, num_requests=CROWD, max_tokens=LONG),
    ):
        await all_served(http, (LIGHT, HEAVY))
        await watch(http, WINDOW_UNITS / 4)
        async with backlog(http, back, num_requests=CROWD, max_tokens=LONG):
            await all_served(http, (LIGHT, HEAVY, back))
            window = await watch(http, WINDOW_UNITS)
            assert are_backlogged(window[-1], (LIGHT, HEAVY, back))

    share = shares(window, (LIGHT, HEAVY, back))
    per_weight = {LIGHT: share[LIGHT], HEAVY: share[HEAVY] / 2, back: share[back]}
    mean = sum(per_weight.values()) / 3
    assert per_weight == pytest.approx(dict.fromkeys(per_weight, mean), rel=0.1)


async def test_an_urgent_request_displaces_and_the_displaced_come_back(
    server: Program, http: httpx.AsyncClient
) -> None:
    """On a full fleet a newcomer is served before any request ends; those displaced lose nothing.

    Their KV comes back from host memory: no token is computed twice, no answer is another one.
    """
    before = await look(http)
    crowd = [Stream(http, completion(max_tokens=LONG), tenant="crowd") for _ in range(CROWD)]
    await fleet_when(http, lambda fleet: fleet.is_full, "all seats are taken")

    urgent = Stream(http, completion(max_tokens=20), tenant="urgent")
    await urgent.end()

    assert urgent.finish_reason == "length"
    assert not any(stream.has_ended for stream in crowd)
    after = await fleet_when(
        http,
        lambda fleet: fleet.switched("swaps_in") > before.switched("swaps_in"),
        "the displaced are back",
    )
    assert after.switched("recomputed_tokens") == before.switched("recomputed_tokens")
    await all_further([stream for stream in crowd if stream.num_tokens])
    longest = max((stream.text for stream in crowd), key=len)
    assert all(longest.startswith(stream.text) for stream in crowd)
    await asyncio.gather(*(stream.leave() for stream in crowd))


async def all_further(streams: Sequence[Stream]) -> None:
    """Returns once each of the streams has had more tokens."""
    had = [stream.num_tokens for stream in streams]
    async with asyncio.timeout(FURTHER_WITHIN_S):
        while any(stream.num_tokens <= num for stream, num in zip(streams, had, strict=True)):
            await asyncio.sleep(POLL_S)


async def all_served(http: httpx.AsyncClient, tenants: Sequence[str]) -> Fleet:
    """The fleet once all of these tenants are backlogged and each has been served since."""
    begin = await fleet_when(
        http,
        lambda fleet: are_backlogged(fleet, tenants),
        "all tenants are backlogged",
    )
    return await fleet_when(
        http,
        lambda fleet: min(gains(begin, fleet, tenants).values()) > 1000,
        "all tenants are being served",
    )


def are_backlogged(fleet: Fleet, tenants: Sequence[str]) -> bool:
    return all(fleet.tenant(tenant).live >= SEATS for tenant in tenants)


async def watch(http: httpx.AsyncClient, units: float) -> list[Fleet]:
    """The fleet as it looked again and again during so much service."""
    window = [await look(http)]

    def is_over(fleet: Fleet) -> bool:
        window.append(fleet)
        return fleet.totals.service - window[0].totals.service > units

    await fleet_when(http, is_over, f"{units:g} units more of service")
    return window


def shares(window: Sequence[Fleet], tenants: Sequence[str]) -> dict[str, float]:
    """Which part of all service went to each tenant: the slope of its own over everybody's.

    VTC lets one get ahead of another by what is served between two rankings, and on a full
    machine that may take a second; the slope depends less on both ends than their difference.
    """
    totals = [fleet.totals.service for fleet in window]
    return {
        tenant: linear_regression(totals, [fleet.tenant(tenant).service for fleet in window]).slope
        for tenant in tenants
    }


def gains(begin: Fleet, end: Fleet, tenants: Sequence[str]) -> dict[str, float]:
    """What each tenant has received between the two."""
    return {tenant: end.tenant(tenant).service - begin.tenant(tenant).service for tenant in tenants}
