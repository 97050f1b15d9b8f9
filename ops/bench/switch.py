"""What does a context switch cost? FastSwitch against recomputing and against blocking swaps.

Conversations of several turns share an engine whose KV memory holds a part of what they need;
priorities change all the time (FastSwitch's set-up, arXiv:2411.18424: every 1 / 0.04 engine steps),
so requests leave the device and come back. The modes differ in what becomes of their KV:
`recompute` throws it away (vLLM's preemption), `swap_blocking` copies it block by block while the
engine waits (the paper's baseline), `fastswitch` is all of ours, `fastswitch_without_X` all but one
part; on CUDA `offload` is vLLM's OffloadingConnector. All run the same scheduler on the same
conversations, each in an engine process of its own, one at a time, in float32 and greedy. With
`--repeats` they take turns, each time in another order, and each repeat has conversations of its
own; latencies are pooled.

The clients are in the engine's process and in its loop: a turn is sent when the one before has
ended and its client has paused, its prompt is the conversation so far with the tokens that were
really generated. Inside the timer: everything from the moment a turn is due until its tokens come
out of `step()`. Not inside: starting the engine, and a short replay to warm up. There is no
ceiling for the tail: a request that is outranked waits for its turn in every mode.

`--trace FILE` replays a trace's first conversations of several turns. Its token counts are
multiplied by one constant (`scale`) so that the longest turn has `--context-tokens`, its times by
another (`time_scale`) so that all conversations begin within `--arrivals-s`.

Keys of the JSON beside CONTRACT.md's: `outputs_equal`, whether every turn got the same tokens in
all modes; `differences` from the first mode, each with how far apart the model has the two tokens,
and `outputs_right`, whether all of them are ties of the model's (`ops.bench.near_ties`);
`blocks_out_saved_by_reuse`, the share of blocks that reuse saves from being copied out;
`speedup`, of fastswitch over each other mode, above 1 is better; `wall_s`, `steps` and `fallbacks`
(preemptions whose KV could not be kept) of each mode; `conversations, turns, scale, time_scale,
device_blocks, working_set_blocks` and the rest of the workload.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from app.settings import AppArgs
from kv.transfer_config import REUSE
from ops.bench import near_ties
from ops.bench.arguments import count, modes, positive, share
from ops.bench.conversations import (
    Conversation,
    Scale,
    by_conversation,
    scale_to,
    scaled,
    synthetic_rows,
)
from ops.bench.engine_process import given_args, running_engine
from ops.bench.errors import TraceError
from ops.bench.latency import percentiles_ms
from ops.bench.plot import plot_switch
from ops.bench.priorities import PATTERNS
from ops.bench.progress import Progress
from ops.bench.replay import MODULE, Replay, ReplayResult
from ops.bench.result import BenchResult
from ops.bench.settings import read_settings
from ops.bench.switch_modes import FASTSWITCH, available_modes, kv_transfer, without
from ops.bench.workload import TraceRow, read_trace

EXAMPLE = "fastswitch bench switch --modes recompute,fastswitch --json --plot switch.png"
RANKS = (50, 95, 99, 99.9)
WARM_UP_CONVERSATIONS, WARM_UP_TOKENS = 4, 256


@dataclass(frozen=True, slots=True)
class Workload:
    """What is played, and on how many blocks."""

    conversations: list[Conversation]
    warm_up: list[Conversation]
    scale: Scale
    longest: int
    working_set_blocks: int
    device_blocks: int


def add_arguments(parser: ArgumentParser) -> None:
    known = available_modes()
    parser.add_argument(
        "--modes",
        type=modes(known),
        default=known,
        metavar="A,B",
        help=f"some of {', '.join(known)} (default: all)",
    )
    parser.add_argument("--model", metavar="DIR", help="a folder or a hub name (default: demo)")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="conversations of a .jsonl.gz trace instead"
    )
    for name, default, meaning in (
        ("conversations", 32, ""),
        ("turns", 6, "of a conversation at most "),
        ("context-tokens", 1536, "of the longest turn "),
        ("max-num-seqs", 24, "size of the batch "),
        ("max-num-batched-tokens", 512, "of one engine step "),
        ("block-tokens", 32, "of a KV block, the fewest that vLLM takes on a CPU "),
        ("repeats", 1, ""),
    ):
        parser.add_argument(
            f"--{name}",
            type=count,
            default=default,
            metavar="N",
            help=f"{meaning}(default: {default})",
        )
    parser.add_argument(
        "--device-share",
        type=share,
        default=0.3,
        metavar="X",
        help="of the KV of all conversations at their longest that the device holds (default: 0.3)",
    )
    parser.add_argument(
        "--host-kv-gib",
        type=positive,
        default=2.0,
        metavar="G",
        help="host memory for KV (default: 2)",
    )
    parser.add_argument(
        "--pattern", choices=PATTERNS, default="markov", help="of priorities (default: markov)"
    )
    parser.add_argument(
        "--frequency",
        type=share,
        default=0.04,
        metavar="X",
        help="changes of all priorities per engine step (default: 0.04)",
    )
    parser.add_argument(
        "--arrivals-s", type=positive, default=8.0, metavar="S", help="(default: 8)"
    )
    parser.add_argument(
        "--pause-s", type=positive, default=0.5, metavar="S", help="at most (default: 0.5)"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture as well (.png)")


def run(options: Namespace) -> BenchResult:
    progress = Progress()
    workloads = [make_workload(options, repeat) for repeat in range(options.repeats)]
    results: dict[str, list[ReplayResult]] = {mode: [] for mode in options.modes}
    for repeat, workload in enumerate(workloads):
        first = repeat % len(options.modes)
        for mode in (*options.modes[first:], *options.modes[:first]):
            progress.tell(f"repeat {repeat + 1} of {options.repeats}: starting {mode}")
            result = play(mode, workload, options, f"{options.seed} {repeat}")
            results[mode].append(result)
            progress.tell(
                f"  {result.wall_s:.1f} s, {result.num_steps} steps, "
                f"{result.switches.preemptions} switches"
            )
    keys = {
        **compare(results),
        **near_ties.explain(
            results,
            [workload.conversations for workload in workloads],
            _settings(options, max(workload.longest for workload in workloads), {}),
            progress,
        ),
        **describe(workloads, options),
    }
    if options.plot is not None:
        plot_switch(keys, options.plot)
    return BenchResult(keys, table(keys))


def make_workload(options: Namespace, repeat: int) -> Workload:
    """The conversations of one repeat and the device's blocks for them.

    Raises:
        TraceError: the trace cannot be read, or has no conversation of several turns.
    """
    seed = f"{options.seed} {repeat}"
    rows = _rows(options, seed)
    groups = by_conversation(rows, options.conversations, options.turns)
    if not groups:
        raise TraceError(options.trace, "no conversation has more than one turn")
    scale = scale_to(
        groups,
        context_tokens=options.context_tokens,
        arrivals_s=options.arrivals_s,
        longest_pause_s=options.pause_s,
    )
    conversations = scaled(groups, scale, seed)
    longest = max(one.longest for one in conversations)
    sizes = [-(-one.longest // options.block_tokens) for one in conversations]
    return Workload(
        conversations=conversations,
        warm_up=_warm_up(f"{seed} warm-up", min(WARM_UP_TOKENS, longest // 2)),
        scale=scale,
        longest=longest,
        working_set_blocks=sum(sizes),
        # The longest must fit, whatever share is asked for.
        device_blocks=max(round(options.device_share * sum(sizes)), max(sizes) + 1),
    )


def play(mode: str, workload: Workload, options: Namespace, seed: str) -> ReplayResult:
    """A warm-up and a replay in a new engine."""
    settings = _settings(
        options,
        workload.longest,
        # One more, which vLLM keeps as its null block.
        {"num_gpu_blocks_override": workload.device_blocks + 1, "enable_prefix_caching": True},
    )
    steps_per_update = round(1 / options.frequency)
    warm_up, replay = (
        Replay(conversations, options.pattern, seed, steps_per_update)
        for conversations in (workload.warm_up, workload.conversations)
    )
    with running_engine(mode, settings, _arguments(mode, settings), MODULE, ReplayResult) as engine:
        engine.ask(warm_up)
        return engine.ask(replay)


def compare(results: Mapping[str, Sequence[ReplayResult]]) -> dict[str, Any]:
    """The result's keys from every mode's replays, which are in the same order."""
    summaries = {mode: summarise(replays) for mode, replays in results.items()}
    ours = summaries.get(FASTSWITCH)
    others = {mode: one for mode, one in summaries.items() if ours and mode != FASTSWITCH}
    unlike = {one["outputs_sha256"] for one in summaries.values()}
    no_reuse = summaries.get(without(REUSE))
    return {
        "modes": summaries,
        "speedup": {mode: _speedup(ours, theirs) for mode, theirs in others.items() if ours},
        "outputs_equal": len(unlike) == 1,
        "blocks_out_saved_by_reuse": (
            round(1 - ours["blocks_out"] / no_reuse["blocks_out"], 3)
            if ours and no_reuse and no_reuse["blocks_out"]
            else None
        ),
    }


def summarise(replays: Sequence[ReplayResult]) -> dict[str, Any]:
    """One mode's numbers: counts added up, latencies pooled, throughput the median's."""
    switches = [one.switches for one in replays]
    blocks_out = sum(one.blocks_out for one in switches)
    blocks_in = sum(one.blocks_in for one in switches)
    descriptors = sum(one.descriptors_out + one.descriptors_in for one in switches)
    wall_s = sum(one.wall_s for one in replays)
    return {
        "ttft_ms": percentiles_ms([s for one in replays for s in one.first_tokens_s], RANKS),
        "tbt_ms": percentiles_ms([s for one in replays for s in one.gaps_s], RANKS),
        "throughput_tok_s": round(median(map(_throughput_tok_s, replays)), 1),
        "switches": sum(one.preemptions for one in switches),
        "recomputed_tokens": sum(one.recomputed_tokens for one in switches),
        "blocks_out": blocks_out,
        "blocks_in": blocks_in,
        "descriptors": descriptors,
        "mean_run_blocks": round((blocks_out + blocks_in) / descriptors, 2)
        if descriptors
        else None,
        "stall_share": round(sum(one.stall_s for one in switches) / wall_s, 5),
        "fallbacks": sum(one.fallbacks for one in switches),
        "outputs_sha256": _digest(replays),
        "wall_s": round(wall_s, 2),
        "steps": sum(one.num_steps for one in replays),
    }


def describe(workloads: Sequence[Workload], options: Namespace) -> dict[str, Any]:
    """The keys that say what was played; of the first repeat where repeats differ."""
    first = workloads[0]
    return {
        "conversations": len(first.conversations),
        "turns": sum(len(one.turns) for one in first.conversations),
        "output_tokens": sum(
            turn.output_tokens for one in first.conversations for turn in one.turns
        ),
        "scale": round(first.scale.tokens, 5),
        "time_scale": round(first.scale.seconds, 5),
        "longest_tokens": first.longest,
        "working_set_blocks": first.working_set_blocks,
        "device_blocks": first.device_blocks,
        "block_tokens": options.block_tokens,
        "max_num_seqs": options.max_num_seqs,
        "max_num_batched_tokens": options.max_num_batched_tokens,
        "host_kv_gib": options.host_kv_gib,
        "pattern": options.pattern,
        "frequency": options.frequency,
        "repeats": options.repeats,
        "model": options.model or "demo",
        "trace": None if options.trace is None else options.trace.name,
    }


def table(keys: Mapping[str, Any]) -> Table:
    """The comparison for people: a row for each mode."""
    title = (
        f"{keys['conversations']} conversations on {keys['device_blocks']} of "
        f"{keys['working_set_blocks']} blocks; times in ms, same tokens: {_verdict(keys)}"
    )
    shown = Table(title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    shown.add_column("", no_wrap=True)
    for heading in ("tok/s", "TTFT p99", "TBT p99.9", "redone tokens"):
        shown.add_column(heading, justify="right")
    for heading in ("switches", "out", "in", "run", "stall"):
        shown.add_column(heading, justify="right", no_wrap=True)
    for mode, one in keys["modes"].items():
        run_blocks = one["mean_run_blocks"]
        shown.add_row(
            mode.replace(without(""), "- ").replace("_", " "),
            f"{one['throughput_tok_s']:.0f}",
            f"{one['ttft_ms']['p99']:.0f}",
            f"{one['tbt_ms']['p999']:.0f}",
            *(str(one[name]) for name in ("recomputed_tokens", "switches")),
            *(str(one[name]) for name in ("blocks_out", "blocks_in")),
            "" if run_blocks is None else f"{run_blocks:.1f}",
            f"{one['stall_share']:.2%}",
        )
    return shown


def _verdict(keys: Mapping[str, Any]) -> str:
    if keys["outputs_equal"]:
        return "yes"
    num_ties = sum(one["is_near_tie"] for one in keys["differences"])
    return f"yes, but for {num_ties} ties" if keys["outputs_right"] else "NO"


def _warm_up(seed: str, context_tokens: int) -> list[Conversation]:
    rows = synthetic_rows(seed, WARM_UP_CONVERSATIONS)
    groups = by_conversation(rows, WARM_UP_CONVERSATIONS, max_turns=2)
    scale = scale_to(groups, context_tokens=context_tokens, arrivals_s=0.0, longest_pause_s=0.0)
    return scaled(groups, scale, seed)


def _rows(options: Namespace, seed: str) -> list[TraceRow]:
    if options.trace is None:
        return synthetic_rows(seed, options.conversations)
    return read_trace(options.trace)


def _settings(options: Namespace, longest: int, engine_args: Mapping[str, Any]) -> AppArgs:
    return read_settings(
        model=options.model,
        replicas=1,
        host_kv_gib=options.host_kv_gib,
        max_num_seqs=options.max_num_seqs,
        max_num_batched_tokens=options.max_num_batched_tokens,
        max_model_len=longest,
        engine_args={"block_size": options.block_tokens, **engine_args},
    )


def _arguments(mode: str, settings: AppArgs) -> dict[str, Any]:
    transfer = kv_transfer(mode, settings.host_kv_gib)
    return {**given_args(settings), "kv_transfer_config": transfer}


def _speedup(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, float]:
    latencies = {
        f"{key}_{rank}": round(theirs[f"{key}_ms"][rank] / ours[f"{key}_ms"][rank], 2)
        for key, rank in (("ttft", "p95"), ("ttft", "p99"), ("ttft", "p999"), ("tbt", "p999"))
    }
    throughput = round(ours["throughput_tok_s"] / theirs["throughput_tok_s"], 3)
    return {**latencies, "throughput": throughput}


def _throughput_tok_s(replay: ReplayResult) -> float:
    return sum(map(len, replay.outputs)) / replay.wall_s


def _digest(replays: Sequence[ReplayResult]) -> str:
    digest = sha256()
    for replay in replays:
        for output in replay.outputs:
            digest.update(f"{output}\n".encode())
    return digest.hexdigest()
