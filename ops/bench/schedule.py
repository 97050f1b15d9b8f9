"""What does our part of a scheduling step cost? Beside vLLM's own ``schedule()`` in the same step.

Our scheduler calls vLLM's ``schedule()`` once in each step; everything before and after it is
counted as ours: new priorities, the choice of who makes way, preempting them (vLLM's own code for
that too; how much it is stands beside) with the plan of their swap, copies ahead. Three workloads
take turns. `idle`: nobody is displaced. `displace`: in each step a request arrives that outranks
one that runs. `rerank`: every 10 steps 200 requests, drawn from all, get random priorities. No
request ends.

No engine is started: steps' output is made up, KV blocks are numbers. Times are the scheduler
thread's processor time, so whatever else the machine does is not in them. Not in them either:
starting, the first prefills, 100 steps to warm up. `plain` is vLLM's own scheduler, without our
classes, connector and queue of free blocks, on the requests of `idle`: what we cost inside of
vLLM's ``schedule()`` shows as the difference.

Keys of the JSON: `workloads`: `idle, displace, rerank`, each `share` (ours over vLLM's, all steps
of a repeat together; the median of the repeats) and `share_max`, `ours_us{mean,p50,p99}` and
`vllm_us{mean,p50,p99}` of a step, `vllm_preempting_us`, the part of `ours_us` that is vLLM's code
for preempting, `displaced_per_step`; `plain_us{mean,p50,p99}`; `idle_over_plain`, the whole of our
step over plain vLLM's; `running, waiting, steps, repeats`.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from statistics import mean, median
from typing import Any

import numpy as np
from rich.table import Table

from ops.bench.arguments import count
from ops.bench.engine_process import given_args, running_engine
from ops.bench.progress import Progress
from ops.bench.result import BenchResult
from ops.bench.scheduling import (
    IDLE,
    LEAD_STEPS,
    MODULE,
    PROMPT_TOKENS,
    STEP_TOKENS,
    WORKLOADS,
    SchedulingTimes,
    SchedulingTrial,
)
from ops.bench.settings import read_settings

EXAMPLE = "fastswitch bench schedule --repeats 5 --json"
PLAIN = "plain"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--model", metavar="DIR", help="a folder or a hub name (default: demo)")
    for name, default, meaning in (
        ("running", 256, "sequence slots, all of them taken "),
        ("waiting", 2000, "requests that wait "),
        ("steps", 400, "of each workload and repeat "),
        ("repeats", 5, ""),
    ):
        text = f"{meaning}(default: {default})"
        parser.add_argument(f"--{name}", type=count, default=default, metavar="N", help=text)


def run(options: Namespace) -> BenchResult:
    progress = Progress()
    settings = read_settings(
        model=options.model,
        max_num_seqs=options.running,
        max_num_batched_tokens=STEP_TOKENS,
        max_model_len=PROMPT_TOKENS + LEAD_STEPS + options.steps + 1,
        replicas=1,
    )
    results: dict[str, list[SchedulingTimes]] = {name: [] for name in (*WORKLOADS, PLAIN)}
    progress.tell("starting the scheduler")
    with running_engine(
        "schedule", settings, given_args(settings), MODULE, SchedulingTimes
    ) as engine:
        for number in range(options.repeats):
            for name, times in results.items():
                times.append(engine.ask(make_trial(name, f"{options.seed} {number}", options)))
            shares = ", ".join(f"{name} {share(results[name][-1]):.1%}" for name in WORKLOADS)
            progress.tell(f"repeat {number}: ours over vLLM's: {shares}")
    keys = {
        **summarise(results),
        "running": options.running,
        "waiting": options.waiting,
        "steps": options.steps,
        "repeats": options.repeats,
    }
    return BenchResult(keys, table(keys))


def make_trial(name: str, seed: str, options: Namespace) -> SchedulingTrial:
    return SchedulingTrial(
        IDLE if name == PLAIN else name,
        seed,
        num_running=options.running,
        num_waiting=options.waiting,
        num_steps=options.steps,
        is_plain=name == PLAIN,
    )


def share(times: SchedulingTimes) -> float:
    """What is ours of a trial's steps, over what is vLLM's."""
    return (sum(times.steps_s) - sum(times.vllm_s)) / sum(times.vllm_s)


def summarise(results: Mapping[str, Sequence[SchedulingTimes]]) -> dict[str, Any]:
    """The result's keys from the repeats of every workload and of plain vLLM."""
    plain_us = _distribution_us([step_s for one in results[PLAIN] for step_s in one.steps_s])
    whole_us = mean(step_s for one in results[IDLE] for step_s in one.steps_s) * 1e6
    return {
        "workloads": {name: _workload(results[name]) for name in WORKLOADS},
        "plain_us": plain_us,
        "idle_over_plain": round(whole_us / plain_us["mean"], 3),
    }


def table(keys: Mapping[str, Any]) -> Table:
    """A row for each workload, and one for plain vLLM."""
    columns = ("", "share", "ours us", "p99", "preempting", "vLLM's us", "p99", "displaced")
    title = f"a scheduling step, {keys['running']} running, {keys['waiting']:,} waiting"
    shown = Table(*columns, title=title)
    for name, one in keys["workloads"].items():
        ours, theirs = one["ours_us"], one["vllm_us"]
        shown.add_row(
            name,
            f"{one['share']:.1%}",
            *(f"{number:.0f}" for number in (ours["mean"], ours["p99"])),
            f"{one['vllm_preempting_us']:.0f}",
            *(f"{number:.0f}" for number in (theirs["mean"], theirs["p99"])),
            f"{one['displaced_per_step']:.2f}",
        )
    plain = keys["plain_us"]
    shown.add_row("plain vLLM", "", "", "", "", f"{plain['mean']:.0f}", f"{plain['p99']:.0f}", "")
    return shown


def _workload(repeats: Sequence[SchedulingTimes]) -> dict[str, Any]:
    steps_s = [step_s for one in repeats for step_s in one.steps_s]
    vllm_s = [step_s for one in repeats for step_s in one.vllm_s]
    shares = [share(one) for one in repeats]
    return {
        "share": round(median(shares), 4),
        "share_max": round(max(shares), 4),
        "ours_us": _distribution_us(
            [step_s - theirs_s for step_s, theirs_s in zip(steps_s, vllm_s, strict=True)]
        ),
        "vllm_us": _distribution_us(vllm_s),
        "vllm_preempting_us": round(
            sum(one.preempting_s for one in repeats) / len(steps_s) * 1e6, 1
        ),
        "displaced_per_step": round(sum(one.num_displaced for one in repeats) / len(steps_s), 2),
    }


def _distribution_us(seconds: Sequence[float]) -> dict[str, float]:
    p50, p99 = np.percentile(seconds, (50, 99))
    by_name = {"mean": mean(seconds), "p50": float(p50), "p99": float(p99)}
    return {name: round(one * 1e6, 1) for name, one in by_name.items()}
