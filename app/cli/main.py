"""The program ``fastswitch``: runs the command asked for and turns what it raises into a status.

Owns the list of commands and the exit statuses: 0 success, 1 a failed check or something wrong
with the machine or a file, 2 wrong usage, 130 interrupted. What a command does stands in its own
module, imported only when that command runs: ``--help`` must not wait for an engine's imports.
"""

import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module, metadata
from typing import Protocol, cast

from app.errors import AppError, UsageError

INTERRUPTED_STATUS = 130  # 128 + SIGINT, as shells report it


class CommandModule(Protocol):
    """What every module named in `COMMANDS` has."""

    EXAMPLE: str

    def add_arguments(self, parser: ArgumentParser) -> None: ...

    def run(self, options: Namespace) -> int:
        """Do it; the result is the exit status."""


@dataclass(frozen=True, slots=True)
class Command:
    """One word that may follow ``fastswitch``, and the module that carries it out."""

    name: str
    module: str
    summary: str

    def load(self) -> CommandModule:
        return cast(CommandModule, import_module(self.module))


COMMANDS = (
    Command("serve", "app.cli.serve", "serve a model on this machine, in the foreground"),
    Command("demo-model", "app.cli.demo_model", "write the small demo model; needs no download"),
    Command("doctor", "app.cli.doctor", "check this machine and say what to fix"),
    Command("keys", "app.cli.keys", "make, list and revoke tenants' API keys"),
    Command("top", "app.cli.top", "watch a running service: tenants, shares, engines, swaps"),
    Command("dashboards", "app.cli.dashboards", "write Grafana dashboards and alert rules"),
    Command("bench", "app.cli.bench", "measure this machine against plain vLLM"),
)


def main(arguments: Sequence[str] | None = None, commands: Sequence[Command] = COMMANDS) -> int:
    """Run one command; the result is the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    command = _chosen(arguments, {command.name: command for command in commands})
    try:
        module = command.load()
        return module.run(_options(command, module, arguments[1:]))
    except AppError as error:
        print(f"fastswitch: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        return INTERRUPTED_STATUS


def _chosen(arguments: Sequence[str], commands: Mapping[str, Command]) -> Command:
    width = max(map(len, commands))
    parser = ArgumentParser(
        prog="fastswitch",
        description="Fair LLM serving with cheap context switches.",
        epilog="\n".join(
            [
                "commands:",
                *(f"  {name:<{width}}  {command.summary}" for name, command in commands.items()),
                "",
                "`fastswitch COMMAND --help` tells more, with an example.",
            ]
        ),
        formatter_class=RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=_version())
    parser.add_argument("command", metavar="COMMAND", choices=commands, help="one of those below")
    # The rest is the command's own.
    return commands[parser.parse_args(arguments[:1]).command]


def _options(command: Command, module: CommandModule, arguments: Sequence[str]) -> Namespace:
    parser = ArgumentParser(
        prog=f"fastswitch {command.name}",
        description=module.__doc__,
        epilog=f"example:\n  {module.EXAMPLE}",
        formatter_class=RawDescriptionHelpFormatter,
    )
    module.add_arguments(parser)
    return parser.parse_args(arguments)


def _version() -> str:
    try:
        return f"fastswitch {metadata.version('fastswitch-serve')}"
    except metadata.PackageNotFoundError:
        return "fastswitch (run from a checkout, not installed)"
