"""The phases of ``bench fairness`` on one server: which load each is, and playing it.

Owns the order of words in seeds: repeats of one number have the same lengths and times in every
phase, and no two phases have a prompt in common, so none finds the KV of another.
"""

from dataclasses import dataclass

from app.settings import AppArgs
from ops.bench.fairness_work import (
    FLOOD,
    MORE,
    NEIGHBOUR,
    NEIGHBOUR_LENGTHS,
    OPEN_S,
    WARM_UP_S,
    Work,
    equal_backlogs,
    load_of,
)
from ops.bench.fleet_watch import wait_for_engines
from ops.bench.latency import percentiles_ms
from ops.bench.phase import Phase, play
from ops.bench.progress import Progress
from ops.bench.server import Server
from ops.bench.tenant_latency import ttfts_s
from ops.bench.tenant_work import backlog, drawn_shapes

ALONE, BEHAVED, FLOODED, FLOODED_FCFS = "alone", "behaved", "flooded", "flooded_fcfs"
WATCH_S, EQUAL_WATCH_S = 1.0, 0.2


@dataclass(frozen=True, slots=True)
class Plan:
    """How long and how much, in every repeat."""

    seed: str
    duration_s: float
    equal_s: float
    num_slots: int
    quiet_slots: int

    def num_streams(self, phase: str) -> int:
        """How many requests the neighbour keeps open."""
        behaved = max(1, self.num_slots - self.quiet_slots)
        return {ALONE: 0, BEHAVED: behaved}.get(phase, FLOOD * behaved)


@dataclass(frozen=True, slots=True)
class Stage:
    """One server that takes the phases in turn."""

    server: Server
    work: Work
    plan: Plan
    progress: Progress

    def play(self, phase: str, number: int) -> Phase:
        plan, server = self.plan, self.server
        contention = self.work.contention(plan.seed, number, plan.duration_s)
        seed, num_streams = f"{plan.seed} {phase} {number}", plan.num_streams(phase)
        self.progress.tell(f"{phase}, repeat {number + 1}: {num_streams} streams beside the quiet")
        arrivals = contention.arrivals if num_streams else contention.alone()
        wants = backlog(contention.neighbour, contention.shapes, num_streams, OPEN_S)
        found = play(load_of(server, seed, plan.duration_s, arrivals, [wants]), WATCH_S)
        ttft_ms = percentiles_ms(ttfts_s([found.clients], contention.quiet))
        self.progress.tell(
            f"  quiet TTFT p50 {ttft_ms['p50']:.0f}, p99 {ttft_ms['p99']:.0f} ms; "
            f"{found.throughput_tok_s:.0f} output tok/s"
        )
        return found

    def play_equal(self) -> Phase:
        plan = self.plan
        backlogs = equal_backlogs(plan.seed, plan.num_slots)
        self.progress.tell(f"equal: {len(backlogs)} tenants that each want every slot")
        load = load_of(self.server, f"{plan.seed} equal", plan.equal_s, backlogs=backlogs)
        return play(load, EQUAL_WATCH_S)


def warm_up(server: Server, settings: AppArgs) -> None:
    """Fill every slot of every engine, and more: what is compiled or grown late is then.

    Raises:
        ServerStartError: not all engines came up.
    """
    wait_for_engines(server.name, server.port, settings.replicas)
    shapes = drawn_shapes("warm-up", NEIGHBOUR_LENGTHS)
    num_streams = MORE * settings.replicas * settings.max_num_seqs
    wants = backlog(NEIGHBOUR, shapes, num_streams, 0.0)
    play(load_of(server, "warm-up", WARM_UP_S, backlogs=[wants]))
