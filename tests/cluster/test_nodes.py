"""Two nodes, 32 streams: each part of the server is killed, and each way there is to lose a node.

Every kind of kill happens once, or as many times as ``FASTSWITCH_KILL_ROUNDS`` says; ``-s`` shows
what each has cost.
"""

import asyncio
import math
import os
import random
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from time import monotonic
from typing import Any

import httpx
import psutil
import pytest

from ops.metrics.stale_groups import groups_of
from tests.cluster.conftest import NO_LIMITS, NUM_ENGINES, SETTINGS
from tests.cluster.fleet import fleet_when, look
from tests.cluster.load import (
    BACK_WITHIN_S,
    Load,
    check_charged,
    repeated_answers,
    served_again,
    undisturbed,
    until_replaced,
)
from tests.cluster.nodes import why_none
from tests.cluster.program import ENGINE_CORE, ENGINE_REPLICA, GATEWAY, ROUTER, wait_until
from tests.cluster.traffic import Stream
from tests.cluster.two_nodes import APPLICATION, TwoNodes, gateway_on, two_nodes
from tests.ops.prometheus import PROGRAMS, pushgateway

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(3600)]

NUM_ROUNDS = int(os.environ.get("FASTSWITCH_KILL_ROUNDS", "1"))
PUSHGATEWAY_PORT = 9091
# The longest pause between two tries, and a try.
PUSHED_AGAIN_WITHIN_S = 90.0


class Pushgateway:
    """The real one, away at times; where it is not installed it always is."""

    def __init__(self, host: str) -> None:
        self._address = f"{host}:{PUSHGATEWAY_PORT}"
        self.url = f"http://{self._address}"
        self._running = ExitStack()

    def start(self) -> None:
        if PROGRAMS["prometheus-pushgateway"]:
            self._running.enter_context(pushgateway(self._address))

    def kill(self) -> None:
        self._running.close()

    def has(self, instances: set[str]) -> bool:
        """Whether all of these have pushed to it; as good as so where there is none."""
        if not PROGRAMS["prometheus-pushgateway"]:
            return True
        return instances <= {each.group.instance for each in groups_of(self.url, APPLICATION)}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TwoNodes]:
    if reason := why_none():
        pytest.skip(f"no nodes in namespaces: {reason}")
    with two_nodes(tmp_path_factory.mktemp("nodes")) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def metrics(cluster: TwoNodes) -> Iterator[Pushgateway]:
    """Where all push to."""
    metrics = Pushgateway(cluster.host)
    metrics.start()
    yield metrics
    metrics.kill()


@pytest.fixture(scope="module")
def deployed(cluster: TwoNodes, metrics: Pushgateway, tiny_model: Path) -> TwoNodes:
    """The application with an engine and a gateway on each node."""
    args: dict[str, Any] = {
        **SETTINGS,
        "model": str(tiny_model),
        "device": "cpu",
        "replicas": NUM_ENGINES,
        "gateways": 2,
        "metrics": {"push_url": metrics.url, "push_s": 1},
        "engine_args": {"enforce_eager": True},  # they start several times
    }
    cluster.deploy(args)
    return cluster


@pytest.fixture
async def http(deployed: TwoNodes) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=deployed.url, timeout=240, limits=NO_LIMITS) as client:
        yield client


@pytest.fixture
async def glance(deployed: TwoNodes) -> AsyncIterator[httpx.AsyncClient]:
    """A client that does not wait for a gateway that may be gone."""
    async with httpx.AsyncClient(base_url=deployed.url, timeout=5, limits=NO_LIMITS) as client:
        yield client


async def test_whatever_dies_of_two_nodes_is_missed_by_nobody(
    deployed: TwoNodes,
    metrics: Pushgateway,
    http: httpx.AsyncClient,
    glance: httpx.AsyncClient,
    seed: int,
) -> None:
    """No request fails but a killed gateway's own, and all answers are those of undisturbed runs.

    Everything runs again within two minutes; a lost node's part of it, once there is another node.
    What clients were given meanwhile is charged to their tenant, to within 5 %.
    """
    await fleet_when(glance, lambda fleet: len(fleet.engines) == NUM_ENGINES, "both engines run")
    answers = await undisturbed(http)
    before = await fleet_when(glance, lambda fleet: fleet.is_idle, "all that ended is charged")
    kills = Kills(deployed, metrics, glance, random.Random(seed))
    async with repeated_answers(http, answers, kills.may_have_broken) as load:
        for _ in range(NUM_ROUNDS):
            await kills.each_once(load)

    after = await fleet_when(glance, lambda fleet: fleet.is_idle, "all that ended is charged")
    print(f"{load.num_requests} requests, {len(load.broken)} of killed gateways, none wrong")
    check_charged(load, before, after)


class Kills:
    """Ends parts of the server one after the other, and sees each come back."""

    def __init__(
        self,
        cluster: TwoNodes,
        metrics: Pushgateway,
        http: httpx.AsyncClient,
        choose: random.Random,
    ) -> None:
        self._cluster, self._metrics, self._http, self._choose = cluster, metrics, http, choose
        self._gone: set[str | None] = set()
        self._gone_until_s = 0.0

    def may_have_broken(self, stream: Stream) -> bool:
        """Whether its gateway was killed; one that had not begun to answer cannot be named."""
        if stream.served_by is None:
            return stream.asked_s < self._gone_until_s
        return stream.served_by in self._gone

    async def each_once(self, load: Load) -> None:
        """Returns when all is back, and the Pushgateway has heard of it."""
        await served_again(load)
        self._metrics.kill()
        # Some are asked to end, by somebody who does not know of our ways to do so.
        end_core = self._choose.choice((psutil.Process.kill, psutil.Process.terminate))
        await self._end_engine(load, ENGINE_CORE, end_core)
        await self._end_engine(load, ENGINE_REPLICA, psutil.Process.kill)
        await self._kill_router(load)
        self._metrics.start()
        await self._kill_gateway(load)
        await self._lose_node(load, "node killed", self._cluster.second.kill)
        await self._lose_node(load, "node cut off", self._cluster.second.cut)
        await self._all_push_again()

    async def _end_engine(
        self, load: Load, name: str, end: Callable[[psutil.Process], None]
    ) -> None:
        fleet = await look(self._http)
        end(self._choose.choice(self._cluster.parts(name)))
        killed_s = monotonic()
        await until_replaced(self._http, fleet)
        await self._is_whole(load, name, killed_s)

    async def _kill_router(self, load: Load) -> None:
        [router] = self._cluster.parts(ROUTER)
        router.kill()
        killed_s = monotonic()
        await served_again(load)
        await self._until(
            lambda: [each.pid for each in self._cluster.parts(ROUTER)] not in ([], [router.pid]),
            "there is a new router",
        )
        await self._is_whole(load, ROUTER, killed_s)

    async def _kill_gateway(self, load: Load) -> None:
        with self._without_second_gateway() as name:
            [gateway] = self._cluster.second.parts(GATEWAY)
            gateway.kill()
            killed_s = monotonic()
            await self._until_gateway_is_new(name)
        await self._is_whole(load, GATEWAY, killed_s)

    async def _lose_node(self, load: Load, kind: str, end: Callable[[], None]) -> None:
        with self._without_second_gateway() as name:
            fleet = await look(self._http)
            await asyncio.to_thread(end)
            await served_again(load)
            replaced_s = monotonic()
            await asyncio.to_thread(self._cluster.replace_second)
            await until_replaced(self._http, fleet)
            await self._until_gateway_is_new(name)
        await self._is_whole(load, kind, replaced_s)

    @contextmanager
    def _without_second_gateway(self) -> Iterator[str]:
        """What it was called; meanwhile streams break that are of it, or of nobody yet."""
        name = gateway_on(self._cluster.second)
        assert name is not None
        self._gone.add(name)
        self._gone_until_s = math.inf
        yield name
        self._gone_until_s = monotonic()

    async def _until_gateway_is_new(self, old: str) -> None:
        await self._until(
            lambda: gateway_on(self._cluster.second) not in (None, old), "there is a new gateway"
        )

    async def _is_whole(self, load: Load, kind: str, since_s: float) -> None:
        """Returns once both engines run requests, within the time from the kill to that."""
        await fleet_when(
            self._http,
            lambda fleet: (
                len(fleet.engines) == NUM_ENGINES
                and all(engine.running > 0 for engine in fleet.engines.values())
            ),
            "both engines run requests",
            within_s=BACK_WITHIN_S,
        )
        took_s = monotonic() - since_s
        assert took_s < BACK_WITHIN_S
        await served_again(load)
        print(f"{kind}: whole after {took_s:.0f} s, longest pause {load.longest_gap_s:.0f} s")
        load.longest_gap_s = 0.0

    async def _all_push_again(self) -> None:
        names = set((await look(self._http)).engines)
        for node in self._cluster.nodes:
            name = gateway_on(node)
            assert name is not None
            names.add(name)
        await self._until(lambda: self._metrics.has(names), "all push again", PUSHED_AGAIN_WITHIN_S)

    async def _until(
        self, condition: Callable[[], bool], what: str, within_s: float = BACK_WITHIN_S
    ) -> None:
        await asyncio.to_thread(wait_until, condition, what, within_s=within_s)
