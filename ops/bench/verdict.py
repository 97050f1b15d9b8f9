"""What a scenario is judged by: numbers against limits that were written down before it ran."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Bound:
    """A number that has to lie on the right side of its limit."""

    name: str
    value: float
    at_most: float | None = None
    at_least: float | None = None

    @property
    def holds(self) -> bool:
        is_low_enough = self.at_most is None or self.value <= self.at_most
        return is_low_enough and (self.at_least is None or self.value >= self.at_least)

    def described(self) -> Mapping[str, Any]:
        limits = {"at_most": self.at_most, "at_least": self.at_least}
        given = {name: limit for name, limit in limits.items() if limit is not None}
        return {"value": self.value, **given, "holds": self.holds}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One scenario: its bounds, and what else was measured."""

    bounds: tuple[Bound, ...]
    numbers: Mapping[str, Any]

    @property
    def has_passed(self) -> bool:
        return all(bound.holds for bound in self.bounds)

    def described(self) -> Mapping[str, Any]:
        bounds = {bound.name: bound.described() for bound in self.bounds}
        return {"passed": self.has_passed, "bounds": bounds, **self.numbers}
