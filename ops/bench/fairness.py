"""Does a quiet tenant notice that its neighbour floods? Two real engines, real HTTP, four phases.

`alone`: a quiet tenant's short requests, which come by themselves (open loop) at a rate well below
its fair share. `behaved`: beside a neighbour with as many requests open as there are sequence
slots left, so that the engines are full and nobody waits. `flooded`: the same with 32 times as
many requests open, all of them opened in the same three seconds, which count. `flooded_fcfs`: the
same under the policy `fcfs`, on a server of its own. What becomes of "just as full" can be read
off: `running` is how many sequences ran at once. `behaved` and `flooded` take turns, repeat by
repeat, on requests of the same lengths at the same times with different tokens, so that no phase
finds the KV of another. `equal`: four tenants of unlike requests that each want everything.

With `--trace` all tenants of the trace take part, tokens and seconds scaled: the one that wants
most is the neighbour, quiet are those that want no more than an equal share.

TTFT is taken at the client, from when a request was due; requests without a token when a phase
ends count with what they had waited (`quiet_unanswered`). Inside the timer: the HTTP request and
all behind it, from the first request of a phase on. Not inside: starting the servers, and a
warm-up of both engines before the first phase.

Keys of the JSON beside CONTRACT.md's, per phase: `quiet_requests, quiet_unanswered, rejected`
(HTTP 429 and 5xx), `running, service_per_s, preemptions, swaps_out`, and `quiet_ttft_ms_settled`
without a phase's first ten seconds, to be set beside what others publish; `isolation_ratio_settled`
the same, `isolation_ratio_fcfs` (flooded_fcfs / behaved), `isolation_ratio_per_repeat`; `equal`;
`targets`, whether each bound of this benchmark holds; `workload`. `jain_index, max_service_gap`
and `service_gap_bound` are of `equal`, whose service is read five times a second from
`GET /v1/fairness`; `ops/bench/evenness.py` has the bound, and why `service_gap_prior_bound`, which
takes nothing from the run, is wider.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from app.settings import AppArgs
from ops.bench import contestants
from ops.bench.arguments import count, positive
from ops.bench.evenness import backlogged, evenness, gap_bound, prior_gap_bound
from ops.bench.fairness_stage import ALONE, BEHAVED, FLOODED, FLOODED_FCFS, Plan, Stage, warm_up
from ops.bench.fairness_work import (
    EQUALS,
    NEIGHBOUR_LENGTHS,
    QUIET_LENGTHS,
    SeededWork,
    Work,
    check_fits,
    read_work,
)
from ops.bench.latency import percentiles_ms
from ops.bench.phase import Phase, describe_fleet
from ops.bench.progress import Progress
from ops.bench.result import BenchResult
from ops.bench.server import Server, ServerCommand, running
from ops.bench.settings import read_settings
from ops.bench.tenant_latency import num_rejected, summarise_ttft, ttfts_s
from ops.bench.tenant_work import TraceScale

EXAMPLE = "fastswitch bench fairness --json"
SETTLED_S = 10.0
MAX_ISOLATION, MIN_THROUGHPUT, MIN_JAIN = 1.2, 0.97, 0.99


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--model", metavar="DIR", help="a folder or a hub name (default: demo)")
    parser.add_argument("--replicas", type=count, default=2, metavar="N", help="(default: 2)")
    parser.add_argument(
        "--max-num-seqs", type=count, default=16, metavar="N", help="slots each (default: 16)"
    )
    parser.add_argument(
        "--duration-s", type=positive, default=40.0, metavar="S", help="a phase (default: 40)"
    )
    parser.add_argument("--repeats", type=count, default=2, metavar="K", help="(default: 2)")
    parser.add_argument(
        "--equal-s", type=positive, default=60.0, metavar="S", help="phase equal (default: 60)"
    )
    parser.add_argument(
        "--quiet-rps",
        type=positive,
        default=5.0,
        metavar="R",
        help="the quiet tenant's requests per second (default: 5)",
    )
    parser.add_argument(
        "--quiet-slots",
        type=count,
        default=1,
        metavar="N",
        help="slots that the behaved neighbour leaves free (default: 1)",
    )
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="the tenants of a .jsonl.gz trace instead"
    )
    parser.add_argument(
        "--token-scale", type=positive, default=0.25, metavar="X", help="of it (default: 0.25)"
    )
    parser.add_argument(
        "--time-scale", type=positive, default=0.25, metavar="X", help="of it (default: 0.25)"
    )


def run(options: Namespace) -> BenchResult:
    progress = Progress()
    settings, settings_fcfs = (_settings(options, policy) for policy in ("vtc", "fcfs"))
    plan = Plan(
        seed=str(options.seed),
        duration_s=options.duration_s,
        equal_s=options.equal_s,
        num_slots=options.replicas * options.max_num_seqs,
        quiet_slots=options.quiet_slots,
    )
    phases: dict[str, list[Phase]] = {ALONE: [], BEHAVED: [], FLOODED: [], FLOODED_FCFS: []}
    progress.tell("starting the server with policy vtc")
    with running(_command(settings)) as server:
        work = make_work(options, settings, server)
        stage = Stage(server, work, plan, progress)
        warm_up(server, settings)
        phases[ALONE].append(stage.play(ALONE, 0))
        for number in range(options.repeats):
            both = (BEHAVED, FLOODED)
            for name in both if number % 2 == 0 else reversed(both):
                phases[name].append(stage.play(name, number))
        equal = stage.play_equal()
    progress.tell("starting the server with policy fcfs")
    with running(_command(settings_fcfs)) as server:
        stage = Stage(server, work, plan, progress)
        warm_up(server, settings_fcfs)
        for number in range(options.repeats):
            phases[FLOODED_FCFS].append(stage.play(FLOODED_FCFS, number))
    keys = {
        **compare(phases, work.quiet),
        **share_out(equal, settings),
        "workload": _described(options, plan, work),
    }
    keys["targets"] = targets(keys)
    return BenchResult(keys, table(keys), all(keys["targets"].values()))


def make_work(options: Namespace, settings: AppArgs, server: Server) -> Work:
    """What the tenants ask for.

    Raises:
        UsageError: the model cannot take requests that long.
        TraceError: the trace cannot be read, or does not hold what is needed.
    """
    # Those of all phases that a trace has no say in, the warm-up's too.
    check_fits([QUIET_LENGTHS, NEIGHBOUR_LENGTHS, *EQUALS.values()], server.max_model_len)
    if options.trace is None:
        return SeededWork(options.quiet_rps)
    scale = TraceScale(options.token_scale, options.time_scale)
    needed_s = options.duration_s * options.repeats
    return read_work(options.trace, scale, settings, server.max_model_len, needed_s)


def compare(phases: Mapping[str, Sequence[Phase]], quiet: Collection[str]) -> dict[str, Any]:
    """The result's keys from the phases of a quiet tenant and its neighbour."""
    summaries = {name: summarise(each, quiet) for name, each in phases.items()}
    p99_ms = {name: summary["quiet_ttft_ms"]["p99"] for name, summary in summaries.items()}
    throughput = {name: summary["throughput_tok_s"] for name, summary in summaries.items()}
    return {
        **summaries,
        "isolation_ratio": round(p99_ms[FLOODED] / p99_ms[BEHAVED], 3),
        "isolation_ratio_per_repeat": [
            round(_p99_ms(flooded, quiet) / _p99_ms(behaved, quiet), 3)
            for flooded, behaved in zip(phases[FLOODED], phases[BEHAVED], strict=True)
        ],
        "isolation_ratio_settled": _ratio(
            *(summaries[name]["quiet_ttft_ms_settled"]["p99"] for name in (FLOODED, BEHAVED))
        ),
        "isolation_ratio_alone": round(p99_ms[FLOODED] / p99_ms[ALONE], 3),
        "isolation_ratio_fcfs": round(p99_ms[FLOODED_FCFS] / p99_ms[BEHAVED], 3),
        "throughput_ratio": round(throughput[FLOODED] / throughput[FLOODED_FCFS], 3),
        "rejected": sum(summary["rejected"] for summary in summaries.values()),
    }


def summarise(phases: Sequence[Phase], quiet: Collection[str]) -> dict[str, Any]:
    """One phase by name: TTFT over the requests of all its repeats, means of the rest."""
    clients = [phase.clients for phase in phases]
    rates = [phase.throughput_tok_s for phase in phases]
    return {
        **{f"quiet_{name}": value for name, value in summarise_ttft(clients, quiet).items()},
        "quiet_ttft_ms_settled": percentiles_ms(ttfts_s(clients, quiet, since_s=SETTLED_S)),
        "throughput_tok_s": round(sum(rates) / len(rates), 1),
        "rejected": num_rejected(clients),
        **describe_fleet(phases),
    }


def share_out(equal: Phase, settings: AppArgs) -> dict[str, Any]:
    """How evenly the tenants of `equal` were served.

    Raises:
        UnevenLoadError: not all of them always wanted more, so nothing follows from it.
    """
    glances = backlogged(equal.glances, list(EQUALS))
    found = evenness(glances, list(EQUALS))
    longest_prompt = max(lengths.prompt.high for lengths in EQUALS.values())
    longest_request = max(lengths.longest for lengths in EQUALS.values())
    return {
        "jain_index": round(found.jain_index, 5),
        "max_service_gap": round(found.max_service_gap),
        "service_gap_bound": round(gap_bound(glances, settings, longest_prompt)),
        "service_gap_prior_bound": round(
            prior_gap_bound(settings, longest_prompt, longest_request)
        ),
        "equal": {
            "observed_s": round(glances[-1].at_s - glances[0].at_s, 1),
            "service": {tenant: round(service) for tenant, service in found.service.items()},
            "throughput_tok_s": round(equal.throughput_tok_s, 1),
            "rejected": num_rejected([equal.clients]),
            **describe_fleet([equal]),
        },
    }


def targets(keys: Mapping[str, Any]) -> Mapping[str, bool]:
    """Whether each bound holds."""
    return {
        "isolation_ratio": keys["isolation_ratio"] <= MAX_ISOLATION,
        "throughput_ratio": keys["throughput_ratio"] >= MIN_THROUGHPUT,
        "jain_index": keys["jain_index"] >= MIN_JAIN,
        "max_service_gap": keys["max_service_gap"] <= keys["service_gap_bound"],
        "rejected": keys["rejected"] == keys["equal"]["rejected"] == 0,
    }


def table(keys: Mapping[str, Any]) -> Table:
    """The comparison for people."""
    names = (ALONE, BEHAVED, FLOODED, FLOODED_FCFS)
    shown = Table(
        "",
        *names,
        title=f"a quiet tenant's P99 TTFT x {keys['isolation_ratio']}, "
        f"throughput x {keys['throughput_ratio']}, Jain {keys['jain_index']}",
    )
    phases = [keys[name] for name in names]
    for rank in ("p50", "p99"):
        shown.add_row(f"TTFT ms {rank}", *(f"{one['quiet_ttft_ms'][rank]:.1f}" for one in phases))
    for label, key in (
        ("requests", "quiet_requests"),
        ("never answered", "quiet_unanswered"),
        ("all: output tok/s", "throughput_tok_s"),
        ("all: service/s", "service_per_s"),
        ("sequences running", "running"),
        ("preemptions", "preemptions"),
        ("refused", "rejected"),
    ):
        shown.add_row(label, *(f"{one[key]:g}" for one in phases))
    shown.add_section()
    shown.add_row(
        "service gap",
        f"{keys['max_service_gap']} of {keys['service_gap_bound']}",
        f"before any run: {keys['service_gap_prior_bound']}",
    )
    missed = [name for name, holds in keys["targets"].items() if not holds]
    shown.caption = f"missed: {', '.join(missed)}" if missed else "every target is met"
    return shown


def _settings(options: Namespace, policy: str) -> AppArgs:
    given = {
        "model": options.model,
        "replicas": options.replicas,
        "max_num_seqs": options.max_num_seqs,
    }
    fairness = read_settings(**given).fairness.model_dump()
    return read_settings(**given, fairness={**fairness, "policy": policy})


def _command(settings: AppArgs) -> ServerCommand:
    return contestants.fastswitch_command(settings, "max_num_seqs", "fairness")


def _ratio(one_ms: float, other_ms: float) -> float | None:
    """None where there was nothing to measure."""
    return round(one_ms / other_ms, 3) if other_ms else None


def _p99_ms(phase: Phase, quiet: Collection[str]) -> float:
    return float(summarise_ttft([phase.clients], quiet)["ttft_ms"]["p99"])


def _described(options: Namespace, plan: Plan, work: Work) -> Mapping[str, Any]:
    return {
        "model": options.model or "demo",
        "replicas": options.replicas,
        "max_num_seqs": options.max_num_seqs,
        "duration_s": plan.duration_s,
        "equal_s": plan.equal_s,
        "repeats": options.repeats,
        "neighbour_streams": {name: plan.num_streams(name) for name in (BEHAVED, FLOODED)},
        **work.described(),
    }
