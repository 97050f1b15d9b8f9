"""Changes to a service that runs: all of it is replaced under load, or settings change alone."""

import asyncio
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import pytest

from tests.cluster.conftest import (
    NO_LIMITS,
    NUM_ENGINES,
    NUM_SEATS,
    SETTINGS,
    as_setting,
)
from tests.cluster.fleet import Fleet, fleet_when
from tests.cluster.load import (
    BACK_WITHIN_S,
    both_engines_serve,
    check_charged,
    endless_requests,
    repeated_answers,
    served_again,
    undisturbed,
    until_served,
)
from tests.cluster.program import ENGINE_CORE, GATEWAY, ROUTER, Program, running, wait_until
from tests.cluster.redeploy import Deployer
from tests.cluster.traffic import Stream, backlog, completion

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(600)]

REDEPLOYED_WITHIN_S = 2 * BACK_WITHIN_S
LONG_TOKENS = 7000  # of a stream that is there when its engine and its gateway are to go
CROWD = NUM_ENGINES * NUM_SEATS + 8
MAX_WAIT_S = 3.0


async def test_a_redeploy_under_load_is_missed_by_nobody(
    server: Program, http: httpx.AsyncClient, deployer: Deployer
) -> None:
    """Engines, router and gateway are replaced: no request fails, and all answers are the same.

    So are two long ones that begin before it, whichever engines they were on. What clients were
    given meanwhile is charged, to within 5 %.
    """
    answers = await undisturbed(http)
    before = await fleet_when(http, lambda fleet: fleet.is_idle, "all that ended is charged")
    old = pids(server, ROUTER, GATEWAY)
    long = [Stream(http, completion(max_tokens=LONG_TOKENS), tenant="long") for _ in range(2)]
    async with repeated_answers(http, answers) as load:
        await served_again(load)
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
        await served_again(load)
    assert [len(stream.tokens) for stream in long] == [LONG_TOKENS, LONG_TOKENS]
    assert long[0].tokens == long[1].tokens
    after = await fleet_when(http, lambda fleet: fleet.is_idle, "all that ended is charged")
    check_charged(load, before, after)
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


async def test_nobody_waits_for_ever_behind_what_outranks_it(
    server: Program, http: httpx.AsyncClient, deployer: Deployer
) -> None:
    """All seats are taken, and wanted, by requests that are more urgent and never end.

    Under `static` nothing but `max_wait_s` gets another one an answer: it does after that time.
    """
    bound = {"fairness": {"policy": "static", "max_wait_s": MAX_WAIT_S}}
    try:
        await asyncio.to_thread(deployer.deploy, bound)
        await asyncio.to_thread(deployer.wait_until_deployed, within_s=REDEPLOYED_WITHIN_S)
        await fleet_when(http, lambda fleet: fleet.policy == "static", "the policy is in force")
        crowd = backlog(http, "crowd", num_requests=CROWD, max_tokens=LONG_TOKENS)
        async with crowd as answers:
            await fleet_when(http, lambda fleet: fleet.is_full, "all seats are taken")
            patient = Stream(http, completion(max_tokens=1, priority=1), tenant="patient")
            async with asyncio.timeout(MAX_WAIT_S + BACK_WITHIN_S):
                await patient.begun()
            waited_s = monotonic() - patient.asked_s
            assert waited_s >= MAX_WAIT_S
            assert not any(answer.done() for answer in answers)
    finally:
        await asyncio.to_thread(deployer.deploy)
    await fleet_when(http, lambda fleet: fleet.policy == "vtc", "the first policy is back")


async def test_engines_come_with_the_load_and_go_with_it(tiny_model: Path, tmp_path: Path) -> None:
    """From one to two while requests wait, and back while some still run: none fails by it."""
    scaling = {
        "min_replicas": 1,
        "max_replicas": 2,
        "target_delay_s": 0.2,
        "upscale_delay_s": 0,
        "downscale_delay_s": 0,
    }
    settings = {**SETTINGS, "autoscaling": scaling, "drain_s": 0.2}
    arguments = [
        *("--model", str(tiny_model), "--device", "cpu", "--replicas", "1"),
        *(part for name, value in settings.items() for part in ("--set", as_setting(name, value))),
    ]
    with running(arguments, tmp_path / "log") as program:
        async with (
            httpx.AsyncClient(base_url=program.url, timeout=240, limits=NO_LIMITS) as http,
            endless_requests(http, "few") as served,
        ):
            async with endless_requests(http, "many", num=10 * NUM_SEATS):
                await until_engines(http, 2)
            await until_engines(http, 1)
            await until_served(http, served, more=4)


async def until_engines(http: httpx.AsyncClient, num: int) -> None:
    """Returns once so many are in the fleet."""
    await fleet_when(
        http,
        lambda fleet: len(fleet.engines) == num,
        f"there are {num} engines",
        within_s=REDEPLOYED_WITHIN_S,
    )


def pids(server: Program, *names: str) -> set[int]:
    """Of all processes of these kinds."""
    return {part.pid for name in names for part in server.parts(name)}
