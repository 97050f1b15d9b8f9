"""A phase covers the same span of time by the clients' account and by the fleet's own."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from ops.bench import fleet_watch
from ops.bench.errors import RequestFailedError, ServerStartError
from ops.bench.fleet_watch import between, switches, wait_for_engines, wait_until_idle
from ops.bench.phase import Phase, describe_fleet, play
from ops.bench.tenant_load import Backlog, Shape, TenantLoad, TenantLoadResult
from tests.ops.bench.fleet_glances import glance
from tests.ops.bench.stand_in_server import (
    HOST,
    STREAM_END,
    STREAM_HEAD,
    chunk,
    end,
    serving,
    tokens,
)


class StandInFleet:
    """Answers every request with ten tokens and counts them as service."""

    def __init__(self, num_live: int = 0) -> None:
        self.num_live = num_live
        self.num_served = 0

    async def reply(self, _body: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        self.num_live += 1
        writer.write(STREAM_HEAD + chunk(tokens("a")))
        await writer.drain()
        writer.write(chunk(tokens("bcdefghij")) + chunk(end(10)) + STREAM_END)
        self.num_served += 1
        self.num_live -= 1

    def state(self) -> dict[str, Any]:
        tenant = {
            "weight": 1.0,
            "service": 20.0 * self.num_served,
            "live": self.num_live,
            "running": 0,
            "rank": 0,
        }
        engine = {
            "running": 3,
            "waiting": 0,
            "max_num_seqs": 4,
            "switches": {"preemptions": self.num_served, "swaps_out": 0},
        }
        return {"policy": "vtc", "tenants": {"t": tenant}, "engines": {"e": engine}}


async def test_a_phase_begins_with_the_fleet_at_rest_and_sees_what_it_serves() -> None:
    """Service and switches are counted from before the first request."""
    fleet = StandInFleet()
    async with serving(fleet.reply, fleet.state) as server:
        load = TenantLoad(
            *(HOST, server.port, "m", "0"),
            duration_s=1.0,
            patience_s=1.0,
            backlogs=[Backlog("t", [0.0, 0.0], [Shape(4, 10)])],
        )
        phase = await asyncio.to_thread(play, load, 0.1)

    seen = phase.glances[1:]
    assert phase.glances[0].service == 0
    assert phase.glances[0].at_s == phase.clients.begin_s
    assert 2 <= len(seen) <= 10
    assert seen[-1].at_s <= phase.clients.begin_s + 1.0
    assert phase.service_per_s > 0
    assert phase.throughput_tok_s > 0
    described = describe_fleet([phase, phase])
    assert described["running"] == 3
    assert described["preemptions"] == 2 * round(seen[-1].service / 20)


async def test_a_server_that_does_not_come_to_rest_is_no_begin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Another load's requests would be measured as this one's."""
    monkeypatch.setattr(fleet_watch, "IDLE_TIMEOUT_S", 0.0)
    fleet = StandInFleet(num_live=3)
    async with serving(fleet.reply, fleet.state) as server:
        with pytest.raises(RequestFailedError, match="3 requests still live"):
            await asyncio.to_thread(wait_until_idle, server.port)


async def test_engines_that_are_still_starting_are_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A server takes requests as soon as its first engine does; a phase needs them all."""
    fleet = StandInFleet()
    states: Iterator[dict[str, Any]] = iter([{"tenants": {}, "engines": {}}])
    async with serving(fleet.reply, lambda: next(states, fleet.state())) as server:
        await asyncio.to_thread(wait_for_engines, "ours", server.port, 1)
        assert next(states, None) is None
        monkeypatch.setattr(fleet_watch, "JOIN_TIMEOUT_S", 0.0)
        with pytest.raises(ServerStartError, match="1 of 2 engines joined in 0 s"):
            await asyncio.to_thread(wait_for_engines, "ours", server.port, 2)


def test_glances_of_a_span_and_what_was_switched_in_it() -> None:
    """Both ends included."""
    glances = [glance(float(n), {"a": 0.0}, preemptions=10 * n) for n in range(5)]
    inner = between(glances, 1.0, 3.0)
    assert [each.at_s for each in inner] == [1.0, 2.0, 3.0]
    assert switches(inner, "preemptions") == 20
    assert switches(inner, "swaps_out") == 0


def test_a_server_that_answered_nobody_in_time_is_still_told_of() -> None:
    """One reading behind the end is better than none."""
    glances = [glance(0.0, {"a": 0.0}, running=0), glance(9.0, {"a": 900.0}, running=2)]
    phase = Phase(4.0, TenantLoadResult(0.0, 5.0, []), glances)
    assert phase.service_per_s == 100
    assert describe_fleet([phase])["running"] == 2
