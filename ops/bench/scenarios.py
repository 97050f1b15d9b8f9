"""Does the fleet pass the five standard scenarios of flow control? Each against limits set before.

`saturation`: four equal tenants want twice what there is; `overhead`: nothing is contended,
policy vtc against fcfs; `equal`: eight equal tenants of unlike requests; `classes`: interactive
work above batch work that must not wait for ever; `mixed`: all at once. Real engines, real HTTP,
the clients in a process of their own. For `overhead` two servers stand side by side and take
turns at short loads: a machine's speed wanders by more from minute to minute than is looked for,
and the server started first is about a hundredth faster.

Inside the timer: from a request being due to its last byte. Not inside: starting the servers, a
warm-up. What is compared with what, and the limits, stand in `ops/bench/scenario_parts.py`.

Keys of the JSON: `scenarios`, by name `passed, bounds{NAME{value, at_most or at_least, holds}}`
and what else was measured; `passed`, whether all did; `workload`.
"""

import math
from argparse import ArgumentParser, Namespace
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from rich.table import Table

from app.settings import AppArgs
from ops.bench import contestants, scenario_parts
from ops.bench.arguments import count, modes, positive
from ops.bench.fairness_stage import warm_up
from ops.bench.fairness_work import EQUALS, NEIGHBOUR_LENGTHS, QUIET_LENGTHS, check_fits
from ops.bench.phase import Phase
from ops.bench.progress import Progress
from ops.bench.result import BenchResult
from ops.bench.scenario_parts import HEAVY_WEIGHT, ScenarioStage, light_load, overhead
from ops.bench.server import running
from ops.bench.settings import read_settings
from ops.bench.verdict import Verdict

EXAMPLE = "fastswitch bench scenarios --only saturation,classes --json"
OVERHEAD = "overhead"
PAIRED_SHARE = 1 / 6  # of a load's duration, for each half of a pair
ON_ONE_SERVER: Mapping[str, Callable[[ScenarioStage], Verdict]] = {
    "saturation": scenario_parts.saturation,
    "equal": scenario_parts.equal,
    "classes": scenario_parts.classes,
    "mixed": scenario_parts.mixed,
}
NAMES = ("saturation", OVERHEAD, "equal", "classes", "mixed")


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--model", metavar="DIR", help="a folder or a hub name (default: demo)")
    parser.add_argument("--replicas", type=count, default=2, metavar="N", help="(default: 2)")
    parser.add_argument(
        "--max-num-seqs", type=count, default=16, metavar="N", help="slots each (default: 16)"
    )
    parser.add_argument(
        "--duration-s", type=positive, default=30.0, metavar="S", help="a load (default: 30)"
    )
    parser.add_argument(
        "--max-wait-s",
        type=positive,
        default=8.0,
        metavar="S",
        help="the bound that classes tests (default: 8)",
    )
    parser.add_argument(
        "--overhead-pairs",
        type=count,
        default=24,
        metavar="N",
        help="turns of both policies, each a sixth of a load long (default: 24)",
    )
    parser.add_argument(
        "--only",
        type=modes(NAMES),
        default=NAMES,
        metavar="NAME,...",
        help=f"of {', '.join(NAMES)} (default: all)",
    )


def run(options: Namespace) -> BenchResult:
    progress = Progress()
    verdicts: dict[str, Verdict] = {}
    if OVERHEAD in options.only:
        verdicts[OVERHEAD] = _overhead(options, progress)
    on_one_server = [name for name in options.only if name != OVERHEAD]
    if on_one_server:
        with _stage(options, "vtc", progress) as stage:
            for name in on_one_server:
                progress.tell(name)
                verdicts[name] = ON_ONE_SERVER[name](stage)
                _tell(name, verdicts[name], progress)
    has_passed = all(verdict.has_passed for verdict in verdicts.values())
    keys = {
        "scenarios": {name: verdicts[name].described() for name in options.only},
        "passed": has_passed,
        "workload": _described(options),
    }
    return BenchResult(keys, table(keys), has_passed)


def _overhead(options: Namespace, progress: Progress) -> Verdict:
    """Both policies in turn, pair by pair; each starts first once, for half of the pairs."""
    found: dict[str, list[Phase]] = {"vtc": [], "fcfs": []}
    half = math.ceil(options.overhead_pairs / 2)
    for order in (("fcfs", "vtc"), ("vtc", "fcfs")):
        with ExitStack() as servers:
            stages = [servers.enter_context(_stage(options, name, progress)) for name in order]
            for _ in range(half):
                _play_pair(dict(zip(order, stages, strict=True)), found, options, progress)
    verdict = overhead(found["vtc"], found["fcfs"])
    _tell(OVERHEAD, verdict, progress)
    return verdict


def _play_pair(
    stages: Mapping[str, ScenarioStage],
    found: Mapping[str, list[Phase]],
    options: Namespace,
    progress: Progress,
) -> None:
    number = len(found["vtc"])
    for policy in sorted(stages, reverse=bool(number % 2)):
        load = light_load(stages[policy], number, options.duration_s * PAIRED_SHARE)
        found[policy].append(load)
    rates = {policy: round(phases[-1].throughput_tok_s) for policy, phases in found.items()}
    progress.tell(f"{OVERHEAD}, pair {number + 1}: {rates} output tok/s")


def _tell(name: str, verdict: Verdict, progress: Progress) -> None:
    progress.tell(f"{name}: {'passed' if verdict.has_passed else 'FAILED'}")


@contextmanager
def _stage(options: Namespace, policy: str, progress: Progress) -> Iterator[ScenarioStage]:
    """A server of its own under that policy, warm."""
    settings = server_settings(options, policy)
    command = contestants.fastswitch_command(settings, "max_num_seqs", "fairness", "tenants")
    progress.tell(f"starting the server with policy {policy}")
    with running(command) as server:
        check_fits([NEIGHBOUR_LENGTHS, QUIET_LENGTHS, *EQUALS.values()], server.max_model_len)
        stage = ScenarioStage(
            server, settings, str(options.seed), options.duration_s, options.max_wait_s
        )
        warm_up(server, settings)
        progress.tell("warm")
        yield stage


def server_settings(options: Namespace, policy: str) -> AppArgs:
    """What the scenarios' server runs with."""
    given = {
        "model": options.model,
        "replicas": options.replicas,
        "max_num_seqs": options.max_num_seqs,
    }
    fairness = {
        **read_settings(**given).fairness.model_dump(),
        "policy": policy,
        "max_wait_s": options.max_wait_s,
    }
    tenants = {"heavy": {"weight": HEAVY_WEIGHT}}
    return read_settings(**given, fairness=fairness, tenants=tenants)


def table(keys: Mapping[str, Any]) -> Table:
    """Every bound with its value, for people."""
    shown = Table("scenario", "bound", "value", "limit", "", title="standard scenarios")
    for name, found in keys["scenarios"].items():
        for bound, numbers in found["bounds"].items():
            limit = (
                f"at most {numbers['at_most']:g}"
                if "at_most" in numbers
                else f"at least {numbers['at_least']:g}"
            )
            held = "holds" if numbers["holds"] else "[bold red]MISSED"
            shown.add_row(name, bound, f"{numbers['value']:g}", limit, held)
        shown.add_section()
    shown.caption = "all passed" if keys["passed"] else "not all passed"
    return shown


def _described(options: Namespace) -> Mapping[str, Any]:
    return {
        "model": options.model or "demo",
        "replicas": options.replicas,
        "max_num_seqs": options.max_num_seqs,
        "duration_s": options.duration_s,
        "max_wait_s": options.max_wait_s,
        "overhead_pairs": options.overhead_pairs,
    }
