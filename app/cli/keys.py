"""Make, list and revoke tenants' API keys. A running server takes up a change within seconds."""

import json
import sys
from argparse import ArgumentParser, Namespace
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from app.keys import hash_secret, new_key
from app.tenants_file import (
    HIGHEST_WEIGHT,
    LOWEST_WEIGHT,
    KeyRecord,
    add_key,
    edit_tenants_file,
    read_tenants_file,
    revoke_key,
)

EXAMPLE = "fastswitch keys make alice --weight 2"


def add_arguments(parser: ArgumentParser) -> None:
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    make = actions.add_parser("make", help="make a key and print it, this once")
    make.add_argument("tenant", metavar="TENANT", help="added to the file if it is not there yet")
    make.add_argument(
        "--weight",
        type=float,
        metavar="W",
        help=f"the tenant's share against others', {LOWEST_WEIGHT:g} to {HIGHEST_WEIGHT:g}",
    )
    make.set_defaults(act=_make)

    listing = actions.add_parser("list", help="list the keys, without their secrets")
    listing.add_argument("--json", action="store_true", help="as JSON, for programs")
    listing.set_defaults(act=_list)

    revoke = actions.add_parser("revoke", help="take a key back, for good")
    revoke.add_argument("key_id", metavar="ID", help="as `list` shows it: the middle of fs-ID-...")
    revoke.set_defaults(act=_revoke)

    for action in (make, listing, revoke):
        action.add_argument(
            "--file",
            type=Path,
            default=Path("tenants.yaml"),
            metavar="FILE",
            help="the tenants file (default: %(default)s)",
        )


def run(options: Namespace) -> int:
    options.act(options)
    return 0


def _make(options: Namespace) -> None:
    key = new_key()
    record = KeyRecord(id=key.key_id, hash=hash_secret(key.secret), created=_now())
    settings = edit_tenants_file(
        options.file, lambda before: add_key(before, options.tenant, record, options.weight)
    )
    # The key alone goes to stdout: `KEY=$(fastswitch keys make alice)` holds it and nothing else.
    print(key.text)
    _tell(f"key {key.key_id} of {options.tenant} is in {options.file}, as a hash: keep the key now")
    if not settings.keys_required:
        _tell(f"keys are off: set `keys_required: true` in {options.file} to ask for them")


def _list(options: Namespace) -> None:
    settings = read_tenants_file(options.file)
    rows = [_row(name, key) for name, tenant in settings.tenants.items() for key in tenant.keys]
    if options.json:
        print(json.dumps({"keys_required": settings.keys_required, "keys": rows}))
        return
    table = Table("id", "tenant", "created", "state")
    for row in rows:
        table.add_row(*map(Text, (row["id"], row["tenant"], row["created"], row["state"])))
    Console().print(table)


def _revoke(options: Namespace) -> None:
    edit_tenants_file(options.file, lambda before: revoke_key(before, options.key_id, _now()))
    _tell(f"key {options.key_id} is revoked: a running server refuses it within seconds")


def _row(tenant: str, key: KeyRecord) -> dict[str, str]:
    return {
        "id": key.id,
        "tenant": tenant,
        "created": key.created.isoformat(),
        "state": f"revoked {key.revoked.isoformat()}" if key.revoked else "active",
    }


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _tell(sentence: str) -> None:
    print(sentence, file=sys.stderr)
