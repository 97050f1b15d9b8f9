"""Shares of service between tenants that are always backlogged, on real engines."""

from collections.abc import Sequence

import httpx
import pytest

from tests.cluster.conftest import NUM_ENGINES, NUM_SEATS
from tests.cluster.fleet import Fleet, fleet_when
from tests.cluster.program import Program
from tests.cluster.tenants import HEAVY, LIGHT
from tests.cluster.traffic import backlog, complete, completion

pytestmark = pytest.mark.cluster

# More than there are seats, so that a tenant alone could fill both engines, and long enough that
# none ends while service is measured.
CROWD = NUM_ENGINES * NUM_SEATS + 4
LONG = 8000
WINDOW_UNITS = 120_000.0


async def test_service_follows_the_weights(server: Program, http: httpx.AsyncClient) -> None:
    """Two tenants of weights 1 and 2, both always backlogged, are served 1:2 within 5 %."""
    async with (
        backlog(http, LIGHT, num_requests=CROWD, max_tokens=LONG) as light,
        backlog(http, HEAVY, num_requests=CROWD, max_tokens=LONG) as heavy,
    ):
        begin = await all_served(http, (LIGHT, HEAVY))
        end = await later(http, begin, WINDOW_UNITS)
        assert not any(request.done() for request in [*light, *heavy])

    gained = gains(begin, end, (LIGHT, HEAVY))
    assert gained[HEAVY] / gained[LIGHT] == pytest.approx(2.0, rel=0.05)


async def test_a_tenant_back_from_idle_is_neither_starved_nor_owed(
    server: Program, http: httpx.AsyncClient
) -> None:
    """Who was away gets its share from its return on: not less, and nothing for the time before."""
    back = "back"
    await complete(http, completion(max_tokens=20), tenant=back)
    async with (
        backlog(http, LIGHT, num_requests=CROWD, max_tokens=LONG) as light,
        backlog(http, HEAVY, num_requests=CROWD, max_tokens=LONG) as heavy,
    ):
        begin = await all_served(http, (LIGHT, HEAVY))
        await later(http, begin, WINDOW_UNITS / 2)
        async with backlog(http, back, num_requests=CROWD, max_tokens=LONG) as returned:
            begin = await all_served(http, (LIGHT, HEAVY, back))
            end = await later(http, begin, WINDOW_UNITS)
            assert not any(request.done() for request in [*light, *heavy, *returned])

    gained = gains(begin, end, (LIGHT, HEAVY, back))
    per_weight = {LIGHT: gained[LIGHT], HEAVY: gained[HEAVY] / 2, back: gained[back]}
    mean = sum(per_weight.values()) / 3
    assert per_weight == pytest.approx(dict.fromkeys(per_weight, mean), rel=0.1)


async def all_served(http: httpx.AsyncClient, tenants: Sequence[str]) -> Fleet:
    """The fleet once all of these tenants are backlogged and each has been served since."""
    begin = await fleet_when(
        http,
        lambda fleet: all(fleet.tenant(tenant).live == CROWD for tenant in tenants),
        "all requests have arrived",
    )
    return await fleet_when(
        http,
        lambda fleet: min(gains(begin, fleet, tenants).values()) > 1000,
        "all tenants are being served",
    )


async def later(http: httpx.AsyncClient, begin: Fleet, units: float) -> Fleet:
    """The fleet after so much more service."""
    return await fleet_when(
        http,
        lambda fleet: fleet.totals.service - begin.totals.service > units,
        f"{units:g} units more of service",
    )


def gains(begin: Fleet, end: Fleet, tenants: Sequence[str]) -> dict[str, float]:
    """What each tenant has received between the two."""
    return {tenant: end.tenant(tenant).service - begin.tenant(tenant).service for tenant in tenants}
