"""Changes to a service that runs: all of it is replaced under load, or some settings without that."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.cluster.conftest import NUM_ENGINES
from tests.cluster.fleet import Fleet, fleet_when, look
from tests.cluster.program import ENGINE_CORE, GATEWAY, ROUTER, Program, wait_until
from tests.cluster.redeploy import Deployer
from tests.cluster.test_faults import (
    BACK_WITHIN_S,
    both_engines_serve,
    endless_requests,
    repeated_answers,
    served_again,
    undisturbed,
    until_served,
)

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

REDEPLOYED_WITHIN_S = 2 * BACK_WITHIN_S


@pytest.fixture
def deployer(program: Program, settings: Mapping[str, Any], tmp_path: Path) -> Deployer:
    """The settings of the server, but for one of its engines'; hardly a request may finish."""
    changed = {**settings, "engine_args": {"seed": 1}, "drain_s": 0.2}
    return Deployer(program, changed, tmp_path)


async def test_a_redeploy_under_load_is_missed_by_nobody(
    server: Program, http: httpx.AsyncClient, deployer: Deployer
) -> None:
    """Engines, router and gateway are replaced: no request fails, and all answers are the same."""
    answers = await undisturbed(http)
    before = await look(http)
    old = pids(server, ROUTER, GATEWAY)
    async with repeated_answers(http, answers) as num_right:
        await served_again(num_right)
        await asyncio.to_thread(deployer.deploy)
        await fleet_when(
            http,
            lambda fleet: (
                len(fleet.engines) == NUM_ENGINES and not fleet.engines.keys() & before.engines
            ),
            "both engines are new",
            within_s=REDEPLOYED_WITHIN_S,
        )
        await asyncio.to_thread(
            wait_until,
            lambda: not old & pids(server, ROUTER, GATEWAY),
            "router and gateway are new",
            within_s=REDEPLOYED_WITHIN_S,
        )
        await served_again(num_right)
    await both_engines_serve(http)


async def test_settings_change_without_a_restart(
    server: Program, http: httpx.AsyncClient, deployer: Deployer
) -> None:
    """The policy changes under the requests; a wrong one is shown and leaves that one in force."""
    await asyncio.to_thread(deployer.deploy)
    await asyncio.to_thread(deployer.wait_until_deployed, within_s=REDEPLOYED_WITHIN_S)
    before = pids(server, ENGINE_CORE, ROUTER, GATEWAY)

    async def shown(condition: Any, what: str) -> Fleet:
        return await fleet_when(http, condition, what, within_s=BACK_WITHIN_S)

    async with endless_requests(http, "steady") as served:
        await until_served(http, served, more=4)

        await asyncio.to_thread(deployer.deploy, {"fairness": {"policy": "fcfs"}})
        await shown(lambda fleet: fleet.policy == "fcfs", "the new policy is in force")

        await asyncio.to_thread(deployer.deploy, {"fairness": {"policy": "luck"}})
        refused = await shown(lambda fleet: fleet.refused_settings, "the wrong policy is refused")
        assert "no policy 'luck'" in (refused.refused_settings or "")
        assert refused.policy == "fcfs"

        await asyncio.to_thread(deployer.deploy)
        right = await shown(lambda fleet: fleet.policy == "vtc", "the first policy is back")
        assert right.refused_settings is None
        await until_served(http, served, more=4)

    assert pids(server, ENGINE_CORE, ROUTER, GATEWAY) == before


def pids(server: Program, *names: str) -> set[int]:
    """Of all processes of these kinds."""
    return {part.pid for name in names for part in server.parts(name)}
