"""How fast is a swap? Runs of blocks on threads, against one plain copy and block by block.

Moves the KV of whole requests between device and host memory with what the engine uses: rows of
blocks layer by layer as the connector finds them, the swap manager with its thread per direction,
a process that is started as the engine's is.
Where the requests' blocks lie is drawn from block-group pools of both sides after churn. No engine
is started; on a CPU "device" and "host" are two parts of the same memory.

`out`, `in` and `duplex` (one request out while another comes in, bytes of both) are compared with
the ceiling, one contiguous copy of as many bytes (two at once for duplex), and with the paper's
baseline, one copy per block and layer while the engine waits, on blocks from pools without groups
(arXiv:2411.18424). They take turns, swap by swap. Inside the timer: from handing a swap over until
its last byte has landed. Not inside: choosing the blocks, first touch of the memory, warm-up.

Keys of the JSON beside CONTRACT.md's, whose flat numbers are those of the shortest context:
`contexts`, the same for each; `times_blockwise{out,in,duplex}`; a descriptor of
`descriptors_per_swap` is one contiguous copy in every layer; `dispatch_us`, how long the engine's
thread takes to hand over a swap (median); `layers, block_kib, swap_mib, pool_blocks, pool_use`.
"""

from argparse import ArgumentParser, Namespace
from collections.abc import Mapping
from statistics import mean, median
from typing import Any

from rich.table import Table

from ops.bench.arguments import count, counts, share
from ops.bench.progress import Progress
from ops.bench.result import BenchResult
from ops.bench.swap_process import time_swaps_as_an_engine
from ops.bench.swap_times import BLOCKWISE, CEILING, FASTSWITCH, WAYS, SwapShape, SwapTimes

EXAMPLE = "fastswitch bench swap --context-tokens 1120,4096,16384 --json"
KIB = 1024


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--context-tokens",
        type=counts,
        default="1120,4096,16384",
        metavar="A,B",
        help="sizes of requests (default: 1120,4096,16384)",
    )
    for name, default, meaning in (
        ("block-tokens", 16, ""),
        ("layers", 8, "the demo model's "),
        ("block-kib", 32, "of a block in one layer, the demo model's "),
        ("repeats", 20, "swaps of each kind "),
    ):
        text = f"{meaning}(default: {default})"
        parser.add_argument(f"--{name}", type=count, default=default, metavar="N", help=text)
    parser.add_argument(
        "--pool-use", type=share, default=0.9, metavar="X", help="of both pools (default: 0.9)"
    )


def run(options: Namespace) -> BenchResult:
    progress = Progress()
    contexts = {}
    for tokens in sorted(options.context_tokens):
        progress.tell(f"swaps of {tokens} tokens")
        shape = SwapShape(
            num_blocks=-(-tokens // options.block_tokens),
            num_layers=options.layers,
            row_bytes=options.block_kib * KIB,
            pool_use=options.pool_use,
        )
        times = time_swaps_as_an_engine(shape, options.repeats, f"{options.seed} {tokens}")
        contexts[str(tokens)] = summarise(times)
    [shortest, *_] = contexts.values()
    keys = {
        **shortest,
        "contexts": contexts,
        "layers": options.layers,
        "block_kib": options.block_kib,
        "block_tokens": options.block_tokens,
        "pool_use": options.pool_use,
        "repeats": options.repeats,
    }
    return BenchResult(keys, table(keys))


def summarise(times: SwapTimes) -> dict[str, Any]:
    """The keys of one size of request."""
    ours, ceiling, blockwise = (
        {way: times.gb_s(mover, way) for way in WAYS} for mover in (FASTSWITCH, CEILING, BLOCKWISE)
    )
    named = {"": ours, "ceiling_": ceiling, "blockwise_": blockwise}
    return {
        **{
            f"{prefix}{way}_gb_s": round(speed, 4)
            for prefix, by_way in named.items()
            for way, speed in by_way.items()
        },
        "share_of_ceiling": {way: round(ours[way] / ceiling[way], 3) for way in WAYS},
        "times_blockwise": {way: round(ours[way] / blockwise[way], 2) for way in WAYS},
        "mean_run_blocks": round(times.shape.num_blocks / mean(times.num_descriptors), 2),
        "descriptors_per_swap": round(mean(times.num_descriptors), 2),
        "dispatch_us": round(median(times.dispatches_s) * 1e6, 1),
        "swap_mib": round(times.shape.num_bytes / 2**20, 2),
        "pool_blocks": times.shape.pool_blocks,
    }


def table(keys: Mapping[str, Any]) -> Table:
    """A row for each size of request and way."""
    columns = ("tokens", "", "GB/s", "of ceiling", "x blockwise", "run", "dispatch us")
    shown = Table(*columns, title=f"swaps on pools {keys['pool_use']:.0%} in use")
    for tokens, one in keys["contexts"].items():
        for way in WAYS:
            shown.add_row(
                tokens,
                way,
                f"{one[f'{way}_gb_s']:.2f}",
                f"{one['share_of_ceiling'][way]:.2f}",
                f"{one['times_blockwise'][way]:.1f}",
                f"{one['mean_run_blocks']:.1f}",
                f"{one['dispatch_us']:.0f}",
            )
    return shown
