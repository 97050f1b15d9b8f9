"""Check this machine and say what to fix. The exit status is 1 if it cannot serve as it is."""

import json
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.doctor import Finding, Verdict, examine
from app.machine import read_machine
from app.model_folder import read_model_folder

EXAMPLE = "fastswitch doctor --model ./demo --port 8000"

_STYLES = {Verdict.OK: "green", Verdict.WARN: "yellow", Verdict.FAIL: "bold red"}


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON, for programs")
    parser.add_argument("--model", type=Path, metavar="DIR", help="a model's folder to check too")
    parser.add_argument(
        "--port", type=_port, default=8000, metavar="P", help="to serve on (default: %(default)s)"
    )


def run(options: Namespace) -> int:
    model = None if options.model is None else read_model_folder(options.model)
    findings = examine(read_machine(options.port), model)
    is_fit = all(finding.verdict is not Verdict.FAIL for finding in findings)
    if options.json:
        print(json.dumps({"is_fit": is_fit, "findings": [asdict(each) for each in findings]}))
    else:
        Console().print(_table(findings))
    return 0 if is_fit else 1


def _table(findings: list[Finding]) -> Table:
    table = Table("", "check", "found", "what to do")
    for finding in findings:
        verdict = Text(finding.verdict, style=_STYLES[finding.verdict])
        table.add_row(verdict, *map(Text, (finding.check, finding.found, finding.fix)))
    return table


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise ArgumentTypeError(f"{text!r} is no port: 1 to 65535")
    return int(text)
