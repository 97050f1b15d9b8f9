"""What does the router cost? Ranking and admission with many requests, tenants and engines.

A fleet scheduler with the settings' defaults under one policy, in a process of its own with all
that the router's process loads and its garbage collection, and stand-in engines that run their most
urgent requests and report in the engines' own encoding. It is as full as one that has been up for
hours; requests end and new ones come, in conversations, a few tenants with many and many with few.

Inside the timers: `rerank`, what one update period takes besides reports, that is ranking all
tenants anew and comparing every live request of every engine with what its engine was told;
`admit`, choosing an engine and a priority for one request, or its place in line where no engine
has room; `report`, decoding one engine's report of a tenth of a second, taking it in and calling
up those in line for whom it made room; `checkpoint`, all that a new router needs, encoded;
`snapshot`, what `GET /v1/fairness` shows, encoded: meanwhile the router admits nobody. Not
inside: the messages' way, decoding an admission, the engines. There is no baseline: the targets
are 10 ms for `rerank` and 200 us for `admit` (p99), and `growth`, the same at a tenth of the size,
says what they would be at another.

Keys of the JSON beside CONTRACT.md's: `policy`; `report_us{p50,p99}`, `checkpoint_ms{p50,p99}` and
`snapshot_ms{p50,p99}`; `cpu`, the five times again as processor time, which other processes on the
machine do not lengthen; `changed_priorities{p50,p99}` of an update, `rounds`. `rss_mb` is what the
router's process holds above what it held when it had no engines and no requests.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.table import Table

from app.settings import FairnessSettings
from ops.bench.arguments import count
from ops.bench.progress import Progress
from ops.bench.result import BenchResult
from ops.bench.router_times import FleetSize, RouterTrial
from scheduler.policies.catalogue import POLICIES

EXAMPLE = "fastswitch bench router --live-requests 10000 --tenants 1000 --engines 100 --json"
DEFAULT_POLICY = FairnessSettings().policy
MS_PER_S, US_PER_S = 1e3, 1e6


def add_arguments(parser: ArgumentParser) -> None:
    for name, default, meaning in (
        ("live-requests", 10_000, "at any time "),
        ("tenants", 1_000, ""),
        ("engines", 100, ""),
        ("rounds", 300, "update periods that are measured "),
    ):
        text = f"{meaning}(default: {default})"
        parser.add_argument(f"--{name}", type=count, default=default, metavar="N", help=text)

    parser.add_argument(
        "--policy",
        choices=tuple(POLICIES),
        default=DEFAULT_POLICY,
        help=f"who is ranked before whom (default: {DEFAULT_POLICY})",
    )


def run(options: Namespace) -> BenchResult:
    from ops.bench.router_trials import run_trial  # loads Ray, which --help does without

    progress = Progress()
    size = FleetSize(options.live_requests, options.tenants, options.engines)
    trials = []
    for each in (size.tenth(), size):
        progress.tell(f"{each.live_requests} requests on {each.engines} engines")
        trials.append(run_trial(each, options.policy, options.rounds, str(options.seed)))
    tenth, whole = map(summarise, trials)
    keys = {**whole, "growth": tenth, "policy": options.policy, "rounds": options.rounds}
    return BenchResult(keys, table(keys))


def summarise(trial: RouterTrial) -> dict[str, Any]:
    """The keys of one fleet."""
    times = trial.times
    calls = (
        ("rerank_ms", times.reranks, MS_PER_S),
        ("admit_us", times.admissions, US_PER_S),
        ("report_us", times.reports, US_PER_S),
        ("checkpoint_ms", times.checkpoints, MS_PER_S),
        ("snapshot_ms", times.snapshots, MS_PER_S),
    )
    return {
        "live_requests": trial.size.live_requests,
        "tenants": trial.size.tenants,
        "engines": trial.size.engines,
        **{key: _percentiles([one.wall_s for one in took], unit) for key, took, unit in calls},
        "cpu": {key: _percentiles([one.cpu_s for one in took], unit) for key, took, unit in calls},
        "changed_priorities": _percentiles(trial.changes, 1),
        "rss_mb": round(trial.rss_mb, 1),
    }


def table(keys: Mapping[str, Any]) -> Table:
    """The fleet beside one of a tenth of its size."""
    fleets = (keys["growth"], keys)
    sizes = (f"{one['live_requests']} requests" for one in fleets)
    shown = Table("", *sizes, title=f"the router's work under policy {keys['policy']}")
    shown.add_row("tenants", *(str(one["tenants"]) for one in fleets))
    shown.add_row("engines", *(str(one["engines"]) for one in fleets))
    for key, label in (
        ("rerank_ms", "rank and compare all, ms"),
        ("admit_us", "admit one, us"),
        ("report_us", "take in a report, us"),
        ("checkpoint_ms", "checkpoint, ms"),
        ("snapshot_ms", "snapshot, ms"),
    ):
        shown.add_row(f"{label}, p50 / p99", *(_tail(one[key]) for one in fleets))
        shown.add_row("  of the processor's time", *(_tail(one["cpu"][key]) for one in fleets))
    shown.add_row("memory, MiB", *(f"{one['rss_mb']:g}" for one in fleets))
    return shown


def _tail(percentiles: Mapping[str, float]) -> str:
    return f"{percentiles['p50']:.4g} / {percentiles['p99']:.4g}"


def _percentiles(values: Sequence[float], per_unit: float) -> dict[str, float]:
    """By name; 0 where the trial was too short for a single value."""
    return {
        f"p{rank}": round(float(np.percentile(values, rank)) * per_unit, 3) if values else 0.0
        for rank in (50, 99)
    }
