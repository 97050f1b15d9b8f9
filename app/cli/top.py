"""Watch a running service: who has which share of it, and what its engines do.

Tenants stand by their share of service in the last seconds, with a mark where the share they are
entitled to would end; engines with the KV blocks they hold and the swaps they make. Ctrl-C ends it.
"""

import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Iterator
from contextlib import suppress
from math import inf
from time import sleep

import msgspec
from rich.console import Console
from rich.live import Live
from rich.text import Text

from app.errors import ServiceAwayError
from app.fairness_client import FairnessClient
from app.top_rates import LastSeconds, Rates
from app.top_view import MAX_ENGINES, render, rows_that_fit

EXAMPLE = "fastswitch top --url http://127.0.0.1:8000 --interval 2"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--url", default="http://127.0.0.1:8000", help="the service (default: %(default)s)"
    )
    parser.add_argument("--key", metavar="KEY", help="a tenant's API key, where keys are asked for")
    parser.add_argument(
        "--interval",
        type=_seconds,
        default=2.0,
        metavar="S",
        help="seconds between two looks (default: %(default)g)",
    )
    parser.add_argument(
        "--window",
        type=_seconds,
        default=10.0,
        metavar="S",
        help="seconds that rates and shares are means of (default: %(default)g)",
    )
    parser.add_argument(
        "--tenants",
        type=_count,
        default=20,
        metavar="K",
        help="tenants shown, the rest as one (default: %(default)s, fewer where lines are)",
    )
    parser.add_argument("--once", action="store_true", help="one view of one interval, then end")
    parser.add_argument("--json", action="store_true", help="a line of JSON instead of each view")


def run(options: Namespace) -> int:
    client = FairnessClient(options.url, options.key)
    with suppress(KeyboardInterrupt):  # how one leaves
        if options.once:
            _show_once(options, client)
        elif options.json or not Console().is_terminal:
            for rates in _follow(options, client):
                _print(options, rates)
        else:
            _show_live(options, client)
    return 0


def _show_once(options: Namespace, client: FairnessClient) -> None:
    seconds = LastSeconds(options.interval)
    found = seconds.add(client.look())
    while found is None:  # again, where the router was started anew between the two
        sleep(options.interval)
        found = seconds.add(client.look())
    _print(options, found)


def _follow(options: Namespace, client: FairnessClient) -> Iterator[Rates]:
    """Rates after each interval; troubles go to stderr and are over when the service is back."""
    seconds = LastSeconds(options.window)
    while True:
        try:
            found = seconds.add(client.look())
        except ServiceAwayError as error:
            print(f"fastswitch: {error}; trying again", file=sys.stderr)
        else:
            if found is not None:
                yield found
        sleep(options.interval)


def _print(options: Namespace, rates: Rates) -> None:
    if options.json:
        print(msgspec.json.encode(rates).decode(), flush=True)
        return
    console = Console()
    console.print(
        render(
            rates,
            url=options.url,
            width=console.width,
            max_tenants=options.tenants,
            max_engines=MAX_ENGINES,
        )
    )


def _show_live(options: Namespace, client: FairnessClient) -> None:
    console = Console()
    seconds = LastSeconds(options.window)
    shown: Rates | None = None
    with Live(console=console, screen=True, auto_refresh=False) as live:
        while True:
            trouble = ""
            try:
                shown = seconds.add(client.look()) or shown
            except ServiceAwayError as error:
                trouble = f"{error}; trying again"
            if shown is None:
                live.update(Text(trouble or f"looking at {client.url} ..."), refresh=True)
            else:
                num_problems = bool(trouble) + bool(shown.refused_settings)
                tenants, engines = rows_that_fit(console.height - num_problems, len(shown.engines))
                view = render(
                    shown,
                    url=client.url,
                    width=console.width,
                    max_tenants=min(options.tenants, tenants),
                    max_engines=engines,
                    trouble=trouble,
                )
                live.update(view, refresh=True)
            sleep(options.interval)


def _seconds(text: str) -> float:
    with suppress(ValueError):
        if 0 < (seconds := float(text)) < inf:
            return seconds
    raise ArgumentTypeError(f"{text!r} is not a number of seconds above 0")


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)
