"""What does the fleet cost over one plain engine? `fastswitch serve` against vLLM's own server.

Both serve the same model with the same engine arguments (`baseline_note` in the result gives the
baseline's, word for word) and get the same requests: greedy streamed completions of fixed length,
first `--streams` at a time, each stream sending its next request when the last one has ended, then
one at a time (`single`). Times are taken in the client's own process. Inside the timer: the HTTP
request, everything behind it, the last byte. Not inside: starting the servers, and a warm-up of
one request per stream.

The servers take turns, never both at once: an idle Ray cluster is not free, and on two cores the
plain server would pay for it. The order turns round with every repeat, so that a machine that
grows slower or faster favours nobody. The physical ceiling of throughput is the baseline's: there
is no less work than that for the same engine.

With `--replicas` above 1 the baseline is still one engine. `ttft_p50_delta_ms` is at one stream.
Keys of the JSON beside CONTRACT.md's: `throughput_ratio_per_repeat`; `tokens_per_event` (`tbt_ms`
counts tokens of one event as 0 apart); `memory_mb` of each server by process, taken right after
the load of all streams; `outputs_equal`, whether both gave the same tokens at one stream;
`outputs_equal_share`, the same at all streams, where another batch may round otherwise;
`baseline_note`; `workload`.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from app.errors import UsageError
from ops.bench import contestants
from ops.bench.arguments import count, span
from ops.bench.errors import TraceError
from ops.bench.latency import summarise, throughput_tok_s
from ops.bench.load import Load, LoadResult, put_load
from ops.bench.memory import memory_mb, total_mb
from ops.bench.plot import plot_serve
from ops.bench.progress import Progress
from ops.bench.result import BenchResult
from ops.bench.server import HOST, Server, running
from ops.bench.settings import read_settings
from ops.bench.workload import Span, WorkItem, fitting, read_trace, replay, synthetic

EXAMPLE = "fastswitch bench serve --streams 32 --repeats 3 --json --plot serve.png"
BASELINE, FASTSWITCH = "baseline", "fastswitch"
REQUESTS_PER_STREAM = 8  # so that the end, where streams run dry, is a small part
SINGLE_REQUESTS = 16
WARM_UP_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Workload:
    """Everything that decides the requests. A trace's lengths take the place of the spans."""

    num_requests: int
    streams: int
    prompt: Span
    output: Span
    trace: Path | None

    def items(self, seed: str, count: int, max_model_len: int) -> list[WorkItem]:
        """``count`` requests, or as many as the trace has.

        Raises:
            UsageError: the model cannot take requests that long.
            TraceError: the trace cannot be read, or has none that the model can take.
        """
        if self.trace is None:
            if self.prompt.high + self.output.high > max_model_len:
                raise UsageError(
                    f"prompts of {self.prompt} and outputs of {self.output} tokens are wanted, "
                    f"the model takes {max_model_len} tokens together"
                )
            return synthetic(seed, count, prompt=self.prompt, output=self.output)
        rows = fitting(read_trace(self.trace), max_model_len)
        if not rows:
            raise TraceError(self.trace, f"no request fits into {max_model_len} tokens")
        return replay(rows[:count], seed)

    def warm_up(self, seed: str) -> list[WorkItem]:
        few = Span(WARM_UP_TOKENS, WARM_UP_TOKENS)
        return synthetic(f"{seed} warm-up", self.streams, prompt=few, output=few)


@dataclass(frozen=True, slots=True)
class Turn:
    """What one server did while it was its turn."""

    concurrent: LoadResult
    single: LoadResult
    memory_mb: Mapping[str, Mapping[str, float]]


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--model", metavar="DIR", help="a folder or a hub name (default: demo)")
    parser.add_argument("--streams", type=count, default=32, metavar="N", help="(default: 32)")
    parser.add_argument(
        "--requests", type=count, metavar="N", help="per repeat (default: 8 for each stream)"
    )
    parser.add_argument("--replicas", type=count, default=1, metavar="N", help="(default: 1)")
    parser.add_argument("--repeats", type=count, default=3, metavar="K", help="(default: 3)")
    parser.add_argument(
        "--prompt-tokens", type=span, default="32:128", metavar="A:B", help="(default: 32:128)"
    )
    parser.add_argument(
        "--output-tokens", type=span, default="64:192", metavar="A:B", help="(default: 64:192)"
    )
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="lengths and turns of a .jsonl.gz trace instead"
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="a picture as well (.png)")


def run(options: Namespace) -> BenchResult:
    progress = Progress()
    workload = Workload(
        num_requests=options.requests or REQUESTS_PER_STREAM * options.streams,
        streams=options.streams,
        prompt=options.prompt_tokens,
        output=options.output_tokens,
        trace=options.trace,
    )
    settings = read_settings(model=options.model, replicas=options.replicas)
    commands = [contestants.baseline_command(settings), contestants.fastswitch_command(settings)]
    turns: dict[str, list[Turn]] = {command.name: [] for command in commands}
    for repeat in range(options.repeats):
        for command in commands if repeat % 2 == 0 else reversed(commands):
            progress.tell(f"repeat {repeat + 1} of {options.repeats}: starting {command.name}")
            with running(command) as server:
                seed = f"{options.seed} {repeat}"
                turns[command.name].append(take_turn(server, workload, seed, progress))
    keys = {
        **compare(turns[BASELINE], turns[FASTSWITCH]),
        "baseline_note": contestants.note(commands[0]),
        "workload": _described(workload, options),
    }
    if options.plot is not None:
        plot_serve(keys, options.plot)
    return BenchResult(keys, table(keys))


def take_turn(server: Server, workload: Workload, seed: str, progress: Progress) -> Turn:
    """Warm a server up and measure it, at all streams and at one."""
    items = workload.items(seed, workload.num_requests, server.max_model_len)
    few = workload.items(f"{seed} single", SINGLE_REQUESTS, server.max_model_len)
    progress.tell("  warming up")
    _put(server, workload.warm_up(seed), workload.streams)
    progress.tell(f"  {len(items)} requests, {workload.streams} at a time")
    concurrent = _put(server, items, workload.streams)
    memory = memory_mb(server.processes())
    progress.tell(f"  {throughput_tok_s(concurrent):.0f} tok/s; {len(few)} requests, one at a time")
    single = _put(server, few, streams=1)
    return Turn(concurrent, single, {**memory, "total": total_mb(memory)})


def _put(server: Server, items: list[WorkItem], streams: int) -> LoadResult:
    # Ids tell outputs apart that look alike as text, and cost the server; one stream has the time.
    load = Load(HOST, server.port, server.model, items, streams, want_token_ids=streams == 1)
    return put_load(load)


def compare(baseline: Sequence[Turn], fastswitch: Sequence[Turn]) -> dict[str, Any]:
    """The result's keys from the turns of both servers, repeat by repeat."""
    turns = {BASELINE: baseline, FASTSWITCH: fastswitch}
    concurrent = {name: summarise([turn.concurrent for turn in turns[name]]) for name in turns}
    single = {name: summarise([turn.single for turn in turns[name]]) for name in turns}
    throughputs = [concurrent[name]["throughput_tok_s"] for name in (FASTSWITCH, BASELINE)]
    first_ms = [single[name]["ttft_ms"]["p50"] for name in (FASTSWITCH, BASELINE)]
    pairs = list(zip(fastswitch, baseline, strict=True))
    return {
        **concurrent,
        "single": single,
        "throughput_ratio": round(throughputs[0] / throughputs[1], 3),
        "throughput_ratio_per_repeat": [
            round(throughput_tok_s(ours.concurrent) / throughput_tok_s(theirs.concurrent), 3)
            for ours, theirs in pairs
        ],
        "ttft_p50_delta_ms": round(first_ms[0] - first_ms[1], 3),
        "memory_mb": {name: turns[name][-1].memory_mb for name in turns},
        "outputs_equal": _equal_share([(a.single, b.single) for a, b in pairs]) == 1,
        "outputs_equal_share": _equal_share([(a.concurrent, b.concurrent) for a, b in pairs]),
    }


def _equal_share(pairs: Sequence[tuple[LoadResult, LoadResult]]) -> float:
    equal = [
        ours.output == theirs.output
        for mine, other in pairs
        for ours, theirs in zip(mine.requests, other.requests, strict=True)
    ]
    return round(sum(equal) / len(equal), 4)


def table(keys: Mapping[str, Any]) -> Table:
    """The comparison for people."""
    streams = keys["workload"]["streams"]
    shown = Table("", "baseline", "fastswitch", title=f"throughput x {keys['throughput_ratio']}")
    for title, results in ((f"{streams} streams", keys), ("1 stream", keys["single"])):
        both = [results[BASELINE], results[FASTSWITCH]]
        shown.add_section()
        shown.add_row(f"[bold]{title}")
        shown.add_row("output tok/s", *(f"{each['throughput_tok_s']:.0f}" for each in both))
        for label, key in (("TTFT ms", "ttft_ms"), ("TBT ms", "tbt_ms")):
            for rank in ("p50", "p99"):
                shown.add_row(f"{label} {rank}", *(f"{each[key][rank]:.1f}" for each in both))
    shown.add_section()
    totals = [keys["memory_mb"][name]["total"] for name in (BASELINE, FASTSWITCH)]
    shown.add_row("memory MiB (PSS)", *(f"{total['pss']:.0f}" for total in totals))
    shown.add_row("processes", *(f"{total['processes']:.0f}" for total in totals))
    shown.add_row("same tokens", "", str(keys["outputs_equal"]))
    return shown


def _described(workload: Workload, options: Namespace) -> Mapping[str, Any]:
    return {
        "requests": workload.num_requests,
        "streams": workload.streams,
        "repeats": options.repeats,
        "replicas": options.replicas,
        "model": options.model or "demo",
        "prompt_tokens": str(workload.prompt) if workload.trace is None else None,
        "output_tokens": str(workload.output) if workload.trace is None else None,
        "trace": None if workload.trace is None else workload.trace.name,
    }
