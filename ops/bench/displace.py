"""How long does an urgent request wait for a full batch? FastSwitch against vLLM's priority policy.

Low-priority requests fill `max_num_seqs`; once all are generating, one high-priority request is
sent. With vLLM's own priority policy (`vllm_priority`) it waits until a request ends; with ours
(`fastswitch`) it displaces one, whose KV is swapped out and comes back. Both are the same engine
with the same arguments but for scheduler and connector, in a process each, stepped by hand; they
take turns, trial by trial, on the same requests. Inside the timer: from sending the request until
the step that gives its first token has returned. Not inside: starting the engines, filling the
batch, one trial to warm up. The floor is `alone`: the same request in an empty vLLM engine, which
costs one step, its own prefill.

Keys of the JSON: `modes`: `vllm_priority, fastswitch, alone`, each `first_token_steps{p50,max},
ttft_ms{p50,p99}`, and `drained_s{p50}`, the time from the urgent request until all have ended,
which is what displacing costs the others; `speedup{ttft_p50,ttft_p99,drained}` of fastswitch over
vllm_priority; `outputs_equal`, whether every request got the same tokens in both; `max_num_seqs`,
`trials`.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from statistics import median
from typing import Any

from rich.table import Table

from ops.bench.arguments import count
from ops.bench.latency import percentiles_ms
from ops.bench.progress import Progress
from ops.bench.result import BenchResult
from ops.bench.settings import read_settings
from ops.bench.stepped import Trial, TrialResult, stepped_engine
from ops.bench.workload import Span, synthetic

EXAMPLE = "fastswitch bench displace --trials 10 --json"
VLLM_PRIORITY, FASTSWITCH, ALONE = "vllm_priority", "fastswitch", "alone"
PROMPT = Span(64, 64)
BACKGROUND_OUTPUT = Span(256, 256)
URGENT_OUTPUT = Span(16, 16)
NOT_VLLMS = frozenset({"scheduler_cls", "kv_transfer_config", "additional_config"})
LEAD_STEPS = 24  # enough for all prefills, few enough that nobody has ended


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--model", metavar="DIR", help="a folder or a hub name (default: demo)")
    parser.add_argument(
        "--max-num-seqs", type=count, default=8, metavar="N", help="size of the batch (default: 8)"
    )
    parser.add_argument("--trials", type=count, default=5, metavar="K", help="(default: 5)")


def run(options: Namespace) -> BenchResult:
    progress = Progress()
    settings = read_settings(model=options.model, max_num_seqs=options.max_num_seqs, replicas=1)
    results: dict[str, list[TrialResult]] = {VLLM_PRIORITY: [], FASTSWITCH: [], ALONE: []}
    with ExitStack() as stack:
        engines = {}
        for mode in (VLLM_PRIORITY, FASTSWITCH):
            progress.tell(f"starting the engine of {mode}")
            left_out = NOT_VLLMS if mode == VLLM_PRIORITY else ()
            engines[mode] = stack.enter_context(stepped_engine(mode, settings, left_out))
        for number in range(-1, options.trials):
            trial = make_trial(f"{options.seed} {number}", options.max_num_seqs)
            lonely = make_trial(f"{options.seed} {number} alone", num_background=0)
            answers = {mode: engines[mode].ask(trial) for mode in engines}
            answers[ALONE] = engines[VLLM_PRIORITY].ask(lonely)
            told = ", ".join(f"{mode} {each.first_token_steps}" for mode, each in answers.items())
            progress.tell(f"{'trial' if number >= 0 else 'warm-up'}: steps to first token: {told}")
            if number >= 0:
                for mode, answer in answers.items():
                    results[mode].append(answer)
    keys = {**compare(results), "max_num_seqs": options.max_num_seqs, "trials": options.trials}
    return BenchResult(keys, table(keys))


def make_trial(seed: str, num_background: int) -> Trial:
    background = synthetic(seed, num_background, prompt=PROMPT, output=BACKGROUND_OUTPUT)
    [urgent] = synthetic(f"{seed} urgent", 1, prompt=PROMPT, output=URGENT_OUTPUT)
    return Trial(background, LEAD_STEPS if background else 0, urgent)


def compare(results: Mapping[str, Sequence[TrialResult]]) -> dict[str, Any]:
    """The result's keys from every mode's trials, which are in the same order."""
    modes = {mode: _summary(trials) for mode, trials in results.items()}
    theirs, ours = modes[VLLM_PRIORITY], modes[FASTSWITCH]
    pairs = zip(results[VLLM_PRIORITY], results[FASTSWITCH], strict=True)
    return {
        "modes": modes,
        "speedup": {
            "ttft_p50": round(theirs["ttft_ms"]["p50"] / ours["ttft_ms"]["p50"], 2),
            "ttft_p99": round(theirs["ttft_ms"]["p99"] / ours["ttft_ms"]["p99"], 2),
            "drained": round(theirs["drained_s"]["p50"] / ours["drained_s"]["p50"], 3),
        },
        "outputs_equal": all(one.outputs == other.outputs for one, other in pairs),
    }


def table(keys: Mapping[str, Any]) -> Table:
    """The comparison for people."""
    shown = Table(
        "", *keys["modes"], title=f"urgent request into a full batch of {keys['max_num_seqs']}"
    )
    modes = keys["modes"].values()
    shown.add_row(
        "steps to first token", *(f"{one['first_token_steps']['p50']:g}" for one in modes)
    )
    shown.add_row("TTFT ms p50", *(f"{one['ttft_ms']['p50']:.1f}" for one in modes))
    shown.add_row("TTFT ms p99", *(f"{one['ttft_ms']['p99']:.1f}" for one in modes))
    shown.add_row("all ended after s", *(f"{one['drained_s']['p50']:.2f}" for one in modes))
    shown.add_row("same tokens", "", str(keys["outputs_equal"]), "")
    return shown


def _summary(trials: Sequence[TrialResult]) -> dict[str, Any]:
    steps = [trial.first_token_steps for trial in trials]
    return {
        "first_token_steps": {"p50": median(steps), "max": max(steps)},
        "ttft_ms": percentiles_ms([trial.first_token_s for trial in trials]),
        "drained_s": {"p50": round(median(trial.drained_s for trial in trials), 3)},
    }
