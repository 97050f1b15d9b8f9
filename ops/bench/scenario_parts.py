"""The five standard scenarios of flow control, each a load and what it is judged by.

Which five is a list that gateway-api-inference-extension#1801 asks of every such system; loads
and limits are ours. Each function takes a stage, puts one or two loads on its server and says
what came of it; limits are relative to the same run, so they mean the same on any machine.
"""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from statistics import fmean, median
from typing import Any

from app.settings import AppArgs
from ops.bench.evenness import backlogged, evenness, gap_bound
from ops.bench.fairness_work import (
    EQUALS,
    MORE,
    NEIGHBOUR_LENGTHS,
    PATIENCE_S,
    QUIET_LENGTHS,
    load_of,
)
from ops.bench.latency import percentiles_ms
from ops.bench.phase import Phase, describe_fleet, play
from ops.bench.server import Server
from ops.bench.tenant_latency import num_rejected, ttfts_s
from ops.bench.tenant_load import Arrival, Backlog
from ops.bench.tenant_work import Lengths, backlog, bursts, drawn_shapes, poisson
from ops.bench.verdict import Bound, Verdict

BATCH_HEADERS = {"X-Service-Class": "batch"}
HEAVY_WEIGHT = 2.0  # of the tenant `heavy`; all others have 1
# A request that has waited for too long is found at the next ranking, told to its engine with the
# next report, and has its first token some steps later.
WAIT_GRACE_S = 1.0
WATCH_S = 0.2


@dataclass(frozen=True, slots=True)
class ScenarioStage:
    """A server, and how much is put on it for how long."""

    server: Server
    settings: AppArgs
    seed: str
    duration_s: float
    max_wait_s: float

    @property
    def num_slots(self) -> int:
        return self.settings.replicas * self.settings.max_num_seqs

    def play(
        self,
        name: str,
        arrivals: Sequence[Arrival] = (),
        backlogs: Sequence[Backlog] = (),
        batch: Collection[str] = (),
    ) -> Phase:
        """Put a load on the server; the tenants of ``batch`` say that nobody waits for them."""
        load = load_of(
            self.server,
            f"{self.seed} {name}",
            self.duration_s,
            arrivals,
            backlogs,
            headers=dict.fromkeys(batch, BATCH_HEADERS),
            # Longer than anybody may wait: a request cut off sooner would seem to have kept it.
            patience_s=max(PATIENCE_S, self.max_wait_s + 2 * WAIT_GRACE_S),
        )
        return play(load, WATCH_S)

    def wanting(self, tenant: str, num_streams: int, lengths: Lengths) -> Backlog:
        return backlog(tenant, drawn_shapes(f"{self.seed} {tenant}", lengths), num_streams, 0.0)

    def wanting_all(self, tenant: str, lengths: Lengths) -> Backlog:
        """The backlog of a tenant that wants more even when it has every slot."""
        return self.wanting(tenant, MORE * self.num_slots, lengths)

    def arriving(self, tenant: str, per_s: float) -> list[Arrival]:
        return poisson(self.seed, tenant, per_s, self.duration_s, QUIET_LENGTHS)


def saturation(stage: ScenarioStage) -> Verdict:
    """Four equal tenants that together want twice what there is: who waits how long?"""
    tenants = [f"tenant-{number}" for number in range(4)]
    # No more: of those that a load's end cuts off, all would seem to have waited alike.
    num_streams = max(1, stage.num_slots // 2)
    phase = stage.play(
        "saturation",
        backlogs=[stage.wanting(tenant, num_streams, NEIGHBOUR_LENGTHS) for tenant in tenants],
    )
    ttft_ms = {tenant: _ttft_ms(phase, [tenant]) for tenant in tenants}
    p99_ms = [each["p99"] for each in ttft_ms.values()]
    return Verdict(
        (
            Bound("worst_over_best_p99", round(max(p99_ms) / min(p99_ms), 3), at_most=1.5),
            _refused(phase),
        ),
        {"ttft_ms": ttft_ms, **_described(phase)},
    )


def light_load(stage: ScenarioStage, number: int, duration_s: float) -> Phase:
    """Two tenants on a quarter of the slots: nobody has to wait for anybody."""
    num_streams = max(1, stage.num_slots // 8)
    return replace(stage, duration_s=duration_s).play(
        f"overhead {number}",
        backlogs=[stage.wanting(name, num_streams, NEIGHBOUR_LENGTHS) for name in ("one", "other")],
    )


def overhead(fair: Sequence[Phase], plain: Sequence[Phase]) -> Verdict:
    """What does fairness cost where nothing is contended? The policy vtc against fcfs.

    ``fair`` and ``plain`` are pairs: the n-th of both were measured one after the other. Of their
    ratios the median: one second in which the machine does something else spoils one pair.
    """
    rates = [fmean(phase.throughput_tok_s for phase in phases) for phases in (fair, plain)]
    ratios = [
        mine.throughput_tok_s / theirs.throughput_tok_s
        for mine, theirs in zip(fair, plain, strict=True)
    ]
    return Verdict(
        (
            Bound("throughput_ratio", round(median(ratios), 4), at_least=0.98),
            _refused(*fair, *plain),
        ),
        {
            "throughput_tok_s": {"vtc": round(rates[0], 1), "fcfs": round(rates[1], 1)},
            "pair_ratios": [round(ratio, 4) for ratio in ratios],
            "ttft_ms": {
                "vtc": _ttft_ms_of(fair, ["one", "other"]),
                "fcfs": _ttft_ms_of(plain, ["one", "other"]),
            },
        },
    )


def equal(stage: ScenarioStage) -> Verdict:
    """Eight equal tenants of unlike requests that each want everything: is service equal?"""
    wants = {f"{kind}-{n}": lengths for kind, lengths in EQUALS.items() for n in range(2)}
    phase = stage.play(
        "equal",
        backlogs=[stage.wanting_all(name, wants[name]) for name in wants],
    )
    glances = backlogged(phase.glances, list(wants))
    found = evenness(glances, list(wants))
    longest_prompt = max(lengths.prompt.high for lengths in wants.values())
    limit = round(gap_bound(glances, stage.settings, longest_prompt))
    return Verdict(
        (
            Bound("jain_index", round(found.jain_index, 5), at_least=0.99),
            Bound("max_service_gap", round(found.max_service_gap), at_most=limit),
            _refused(phase),
        ),
        {"service": _rounded(found.service), **_described(phase)},
    )


def classes(stage: ScenarioStage) -> Verdict:
    """Two interactive tenants want everything, a batch tenant a little: how long does it wait?"""
    above = ("above-1", "above-2")
    phase = stage.play(
        "classes",
        arrivals=stage.arriving("below", 1.0),
        backlogs=[stage.wanting_all(tenant, NEIGHBOUR_LENGTHS) for tenant in above],
        batch=["below"],
    )
    waits_s = ttfts_s([phase.clients], ["below"])
    limit_s = stage.max_wait_s + WAIT_GRACE_S
    return Verdict(
        (
            Bound("batch_wait_s_max", round(max(waits_s), 3), at_most=limit_s),
            _refused(phase),
        ),
        {
            "ttft_ms": {
                "interactive": _ttft_ms(phase, above),
                "batch": _ttft_ms(phase, ["below"]),
            },
            **_described(phase),
        },
    )


def mixed(stage: ScenarioStage) -> Verdict:
    """All at once: a quiet, a bursty, a heavy and a light tenant, and batch work that floods."""
    backlogs = [
        stage.wanting_all("heavy", NEIGHBOUR_LENGTHS),
        stage.wanting_all("light", NEIGHBOUR_LENGTHS),
        stage.wanting("flood", 4 * stage.num_slots, NEIGHBOUR_LENGTHS),
    ]
    arrivals = stage.arriving("quiet", 3.0) + bursts(
        stage.seed, "bursty", stage.num_slots // 2, 8.0, stage.duration_s, QUIET_LENGTHS
    )
    phase = stage.play("mixed", arrivals, backlogs, batch=["flood"])
    busy = ["heavy", "light"]
    found = evenness(backlogged(phase.glances, busy), busy)
    quiet, waiting = _ttft_ms(phase, ["quiet"]), _ttft_ms(phase, busy)
    return Verdict(
        (
            Bound("jain_index", round(found.jain_index, 5), at_least=0.98),
            Bound("quiet_p99_over_busy_p50", round(quiet["p99"] / waiting["p50"], 3), at_most=0.25),
            _refused(phase),
        ),
        {
            "service_over_weight": _rounded(found.service),
            "ttft_ms": {
                "quiet": quiet,
                "bursty": _ttft_ms(phase, ["bursty"]),
                "busy": waiting,
                "flood": _ttft_ms(phase, ["flood"]),
            },
            **_described(phase),
        },
    )


def _ttft_ms(phase: Phase, tenants: Collection[str]) -> dict[str, float]:
    return _ttft_ms_of([phase], tenants)


def _ttft_ms_of(phases: Sequence[Phase], tenants: Collection[str]) -> dict[str, float]:
    return percentiles_ms(ttfts_s([phase.clients for phase in phases], tenants))


def _refused(*phases: Phase) -> Bound:
    return Bound("rejected", num_rejected([phase.clients for phase in phases]), at_most=0)


def _described(phase: Phase) -> dict[str, Any]:
    return {"throughput_tok_s": round(phase.throughput_tok_s, 1), **describe_fleet([phase])}


def _rounded(service: Any) -> dict[str, int]:
    return {tenant: round(units) for tenant, units in service.items()}
