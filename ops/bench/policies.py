"""What does each policy do with the same contended load? One real engine, a server per policy.

Three tenants: `steady` sends short requests one by one (open loop), `flood` has many times more
requests open than the engine has slots, `bursty` sends a slot's worth of requests each at once,
again and again, and says that nobody waits for them (class batch). The load is the same for all
policies, request by request. `steady` also says what single policies look at: a priority above
the others' for `static`, a wanted time to first token for `deadline`.

Pictures, one per policy and into `--plot DIR`: the service each tenant has received over time,
from `GET /v1/fairness`, and how its requests' times to first token are distributed, at the client.
Requests without a token when the load ends count with what they had waited. Inside the timer: the
HTTP request and all behind it. Not inside: starting the server, and a warm-up.

Keys of the JSON: `policies`, by name `tenants{NAME{ttft_ms{p50,p99}, service, requests,
unanswered}}, throughput_tok_s, rejected, running, service_per_s, preemptions, swaps_out`;
`workload`.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from app.settings import AppArgs
from ops.bench import contestants
from ops.bench.arguments import count, modes, positive
from ops.bench.fairness_stage import warm_up
from ops.bench.fairness_work import NEIGHBOUR_LENGTHS, QUIET_LENGTHS, check_fits, load_of
from ops.bench.phase import Phase, describe_fleet, play
from ops.bench.plot import plot_policy
from ops.bench.progress import Progress
from ops.bench.result import BenchResult
from ops.bench.server import Server, running
from ops.bench.settings import read_settings
from ops.bench.tenant_latency import num_rejected, summarise_ttft, ttfts_s
from ops.bench.tenant_load import TenantLoad
from ops.bench.tenant_work import backlog, bursts, drawn_shapes, poisson
from scheduler.policies.catalogue import POLICIES

EXAMPLE = "fastswitch bench policies --policies vtc,fcfs --plot docs/images --json"
STEADY, FLOOD, BURSTY = "steady", "flood", "bursty"
TENANTS = (STEADY, FLOOD, BURSTY)
STEADY_PER_S, BURST_EVERY_S, FLOOD_TIMES = 3.0, 5.0, 8
HEADERS = {
    STEADY: {"X-Vllm-Priority": "-1", "X-Slo-Ttft-Ms": "200"},
    BURSTY: {"X-Service-Class": "batch"},
}
WATCH_S = 0.2


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--model", metavar="DIR", help="a folder or a hub name (default: demo)")
    parser.add_argument(
        "--max-num-seqs", type=count, default=16, metavar="N", help="slots (default: 16)"
    )
    parser.add_argument(
        "--duration-s", type=positive, default=20.0, metavar="S", help="a policy (default: 20)"
    )
    parser.add_argument(
        "--policies",
        type=modes(tuple(POLICIES)),
        default=tuple(POLICIES),
        metavar="NAME,...",
        help=f"of {', '.join(POLICIES)} (default: all)",
    )
    parser.add_argument("--plot", type=Path, metavar="DIR", help="pictures: policy_NAME.png")


def run(options: Namespace) -> BenchResult:
    progress = Progress()
    if options.plot is not None:
        options.plot.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {}
    for policy in options.policies:
        settings = _settings(options, policy)
        progress.tell(f"starting the server with policy {policy}")
        with running(
            contestants.fastswitch_command(settings, "max_num_seqs", "fairness")
        ) as server:
            check_fits([NEIGHBOUR_LENGTHS, QUIET_LENGTHS], server.max_model_len)
            warm_up(server, settings)
            progress.tell("  warm")
            phase = play(make_load(server, options), WATCH_S)
        found[policy] = summarise(phase)
        progress.tell(f"  {found[policy]['throughput_tok_s']:.0f} output tok/s")
        if options.plot is not None:
            plot_policy(policy, courses(phase), waits_s(phase), options.plot / _picture(policy))
    keys = {"policies": found, "workload": _described(options)}
    return BenchResult(keys, table(keys))


def make_load(server: Server, options: Namespace) -> TenantLoad:
    """The same requests whatever the policy."""
    seed, duration_s, num_slots = str(options.seed), options.duration_s, options.max_num_seqs
    arrivals = [
        *poisson(seed, STEADY, STEADY_PER_S, duration_s, QUIET_LENGTHS),
        *bursts(seed, BURSTY, num_slots, BURST_EVERY_S, duration_s, NEIGHBOUR_LENGTHS),
    ]
    shapes = drawn_shapes(f"{seed} {FLOOD}", NEIGHBOUR_LENGTHS)
    flood = backlog(FLOOD, shapes, FLOOD_TIMES * num_slots, 0.0)
    return load_of(server, seed, duration_s, arrivals, [flood], HEADERS)


def summarise(phase: Phase) -> dict[str, Any]:
    """One policy's numbers."""
    begin, end = phase.glances[0], phase.glances[-1]
    return {
        "tenants": {
            tenant: {
                **summarise_ttft([phase.clients], [tenant]),
                "service": round(end.service_of(tenant) - begin.service_of(tenant)),
            }
            for tenant in TENANTS
        },
        "throughput_tok_s": round(phase.throughput_tok_s, 1),
        "rejected": num_rejected([phase.clients]),
        **describe_fleet([phase]),
    }


def courses(phase: Phase) -> dict[str, list[tuple[float, float]]]:
    """The service of each tenant since the load began, by seconds since then."""
    begin = phase.glances[0]
    return {
        tenant: [
            (
                round(glance.at_s - begin.at_s, 3),
                glance.service_of(tenant) - begin.service_of(tenant),
            )
            for glance in phase.glances
        ]
        for tenant in TENANTS
    }


def waits_s(phase: Phase) -> dict[str, list[float]]:
    """The times to first token of each tenant."""
    return {tenant: ttfts_s([phase.clients], [tenant]) for tenant in TENANTS}


def table(keys: Mapping[str, Any]) -> Table:
    """A row per policy, for people."""
    columns = [f"{tenant}: TTFT ms, share" for tenant in TENANTS]
    shown = Table(
        "policy", *columns, "tok/s", title="one load under each policy: TTFT p50 / p99, service"
    )
    for policy, found in keys["policies"].items():
        total = sum(each["service"] for each in found["tenants"].values()) or 1
        cells = [
            f"{each['ttft_ms']['p50']:.0f} / {each['ttft_ms']['p99']:.0f}, "
            f"{each['service'] / total:.0%}"
            for each in found["tenants"].values()
        ]
        shown.add_row(policy, *cells, f"{found['throughput_tok_s']:.0f}")
    return shown


def _settings(options: Namespace, policy: str) -> AppArgs:
    given = {"model": options.model, "replicas": 1, "max_num_seqs": options.max_num_seqs}
    fairness = {**read_settings(**given).fairness.model_dump(), "policy": policy}
    return read_settings(**given, fairness=fairness)


def _picture(policy: str) -> str:
    return f"policy_{policy}.png"


def _described(options: Namespace) -> Mapping[str, Any]:
    return {
        "model": options.model or "demo",
        "max_num_seqs": options.max_num_seqs,
        "duration_s": options.duration_s,
        "steady_rps": STEADY_PER_S,
        "burst_every_s": BURST_EVERY_S,
        "flood_streams": FLOOD_TIMES * options.max_num_seqs,
    }
