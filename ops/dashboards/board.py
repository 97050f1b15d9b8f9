"""What a dashboard is made of, as plain facts.

Owns the words; `ops.dashboards.grafana` turns them into Grafana's JSON. Apart from it so that what
is shown can be read, and every query run against a Prometheus server, without Grafana's model.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum


class Unit(Enum):
    """Grafana's names of the units that occur here."""

    COUNT = "short"
    PER_SECOND = "cps"
    TOKENS_PER_SECOND = "suffix: tok/s"
    SECONDS = "s"
    SHARE = "percentunit"
    BYTES_PER_SECOND = "Bps"


@dataclass(frozen=True, slots=True)
class Curve:
    """One PromQL query; ``legend`` names its series by their labels, ``{{tenant}}``."""

    query: str
    legend: str


@dataclass(frozen=True, slots=True)
class Graph:
    """One panel: curves over time. ``text`` says what to make of it."""

    title: str
    text: str
    unit: Unit
    curves: tuple[Curve, ...]
    is_stacked: bool = False


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice above the dashboard: the values that the label ``name`` of ``metric`` has."""

    name: str
    metric: str


@dataclass(frozen=True, slots=True)
class Board:
    """One dashboard; two graphs stand side by side."""

    uid: str
    title: str
    text: str
    graphs: tuple[Graph, ...]
    variables: tuple[Variable, ...] = ()

    def curves(self) -> Iterator[Curve]:
        for graph in self.graphs:
            yield from graph.curves
