"""What every benchmark returns: a table for people and the keys of its line of JSON."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.table import Table


@dataclass(frozen=True, slots=True)
class BenchResult:
    """Numbers with units in their keys, and the same for people.

    ``has_passed`` is false where the benchmark has limits of its own and one does not hold.
    """

    keys: Mapping[str, Any]
    table: Table
    has_passed: bool = True
