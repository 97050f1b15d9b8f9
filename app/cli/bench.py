"""Measure: compare this project with what it builds on, on this machine, and print the numbers.

`fastswitch bench NAME --help` says what is compared and what the numbers mean. Progress goes to
standard error, a table to standard output; with --json the last line there is one JSON object.
The exit status is 1 where a benchmark has limits of its own and one does not hold.
"""

import json
import signal
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol, cast

from rich.console import Console

from app.versions import check_versions

if TYPE_CHECKING:
    from ops.bench.result import BenchResult

EXAMPLE = "fastswitch bench serve --json"


class BenchModule(Protocol):
    """What every module named in `BENCHES` has."""

    EXAMPLE: str

    def add_arguments(self, parser: ArgumentParser) -> None: ...

    def run(self, options: Namespace) -> "BenchResult": ...


@dataclass(frozen=True, slots=True)
class Bench:
    """One word that may follow ``fastswitch bench``, and the module that carries it out."""

    name: str
    module: str
    summary: str

    def load(self) -> BenchModule:
        return cast(BenchModule, import_module(self.module))


BENCHES = (
    Bench("serve", "ops.bench.serve", "the served fleet against the plain vLLM server"),
    Bench("displace", "ops.bench.displace", "an urgent request into a full batch"),
    Bench("switch", "ops.bench.switch", "switched requests: kept, or computed again"),
    Bench("fairness", "ops.bench.fairness", "a quiet tenant beside a neighbour that floods"),
    Bench("scenarios", "ops.bench.scenarios", "five standard scenarios against fixed limits"),
    Bench("policies", "ops.bench.policies", "one contended load under each policy, as pictures"),
    Bench("push", "ops.bench.push", "pushing metrics of many tenants"),
    Bench("swap", "ops.bench.swap", "the speed of swaps against one plain copy"),
    Bench("router", "ops.bench.router", "the router's own work, with many requests and engines"),
    Bench("schedule", "ops.bench.schedule", "our part of a scheduling step"),
)


def add_arguments(parser: ArgumentParser) -> None:
    names = parser.add_subparsers(dest="bench", metavar="NAME", required=True)
    for bench in BENCHES:
        module = bench.load()
        one = names.add_parser(
            bench.name,
            help=bench.summary,
            description=module.__doc__,
            epilog=f"example:\n  {module.EXAMPLE}",
            formatter_class=RawDescriptionHelpFormatter,
        )
        one.add_argument("--json", action="store_true", help="one JSON object as the last line")
        one.add_argument("--seed", type=int, default=0, metavar="S", help="(default: 0)")
        module.add_arguments(one)


def run(options: Namespace) -> int:
    from ops.bench.provenance import provenance

    check_versions()
    _end_on_sigterm()
    [bench] = [bench for bench in BENCHES if bench.name == options.bench]
    origin = provenance()  # before the run: it says what else the machine was doing
    result = bench.load().run(options)
    Console().print(result.table)
    if options.json:
        keys = {"bench": bench.name, "seed": options.seed, **origin, **result.keys}
        print(json.dumps(keys), flush=True)
    return 0 if result.has_passed else 1


def _end_on_sigterm() -> None:
    """End as with Ctrl-C: servers that a benchmark has started must not outlive it."""

    def end(_signal: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, end)
