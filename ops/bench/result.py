"""What every benchmark returns: a table for people and the keys of its line of JSON."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table

from ops.bench.provenance import provenance


@dataclass(frozen=True, slots=True)
class BenchResult:
    """Numbers with units in their keys, and the same for people."""

    keys: Mapping[str, Any]
    table: Table

    def json_line(self, bench: str, seed: int) -> str:
        """One object that also says what the numbers were measured with."""
        return json.dumps({"bench": bench, "seed": seed, **provenance(), **self.keys})
