"""How ``fastswitch top`` looks: rates as a header and two tables, at any width.

Owns columns, bars and colours. Which columns are shown depends on the width alone, how many rows
on what the caller allows; what they say is ``app.top_rates``'.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Literal, TypeVar

from rich import box
from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from app.top_rates import EngineRates, Rates, Standing, TenantRates, others

MIN_BAR = 6  # columns
FIXED_LINES = 9  # two of the header, for each table an empty one and two of its head, the caption
MAX_ENGINES = 10

_COLOURS = {Standing.ABOVE: "yellow", Standing.EVEN: "green", Standing.BELOW: "bold red"}

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Bar:
    """``value`` of ``scale`` as a bar, with a mark where it should end."""

    value: float
    scale: float
    style: str
    mark: float | None = None

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        full, empty, mark = "#.|" if options.ascii_only else "█·│"
        width = options.max_width
        num_full = self._columns(self.value, width)
        bar = Text(full * num_full, self.style) + Text(empty * (width - num_full), "dim")
        if self.mark is not None and self.scale:
            at = min(width - 1, self._columns(self.mark, width))
            bar = bar[:at] + Text(mark, "bold") + bar[at + 1 :]
        yield bar

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(MIN_BAR, options.max_width)

    def _columns(self, value: float, width: int) -> int:
        return min(width, round(value / self.scale * width)) if self.scale else 0


@dataclass(frozen=True, slots=True)
class _Column(Generic[Row]):
    """One column, shown where the terminal has at least ``from_width`` columns."""

    title: str
    cell: Callable[[Row], RenderableType]
    from_width: int = 0
    justify: Literal["left", "right"] = "right"
    is_bar: bool = False


def rows_that_fit(height: int, num_engines: int) -> tuple[int, int]:
    """How many tenants and how many engines a terminal of this height has lines for."""
    lines = max(2, height - FIXED_LINES)
    engines = min(num_engines, MAX_ENGINES, max(1, lines // 3))
    return max(1, lines - engines), engines


def render(
    rates: Rates, *, url: str, width: int, max_tenants: int, max_engines: int, trouble: str = ""
) -> RenderableType:
    """Everything; ``trouble`` is said on top where what is shown is not the latest."""
    head = Text(no_wrap=True, overflow="ellipsis")
    head.append("fastswitch top", "bold").append(
        f"  {url}  policy {rates.policy}  last {rates.window_s:.0f} s"
    )
    totals = rates.totals
    line = Text(
        f"{totals.output_tok_s:,.0f} output tok/s  {totals.prompt_tok_s:,.0f} prompt tok/s  "
        f"{totals.running:,} running  {totals.waiting:,} waiting"
        + (f", {totals.in_line:,} in line" if totals.in_line else ""),
        no_wrap=True,
        overflow="ellipsis",
    )
    parts: list[RenderableType] = [head, line, "", _tenants(rates.tenants, width, max_tenants)]
    if rates.engines:
        parts += ["", _engines(rates.engines, width, max_engines)]
    for problem in filter(None, (rates.refused_settings, trouble)):
        parts.insert(0, Text(problem, "bold red", no_wrap=True, overflow="ellipsis"))
    return Group(*parts)


def _tenants(tenants: Sequence[TenantRates], width: int, max_rows: int) -> Table:
    named = tenants if len(tenants) <= max_rows else tenants[: max_rows - 1]
    rest = tenants[len(named) :]
    scale = max((max(one.share, one.entitled_share) for one in named), default=0.0)

    def bar(one: TenantRates) -> RenderableType:
        if one.share > scale or one.entitled_share > scale:
            return ""  # of the others together: beside it everybody's would be nothing
        return Bar(one.share, scale, _COLOURS[one.standing], mark=one.entitled_share)

    shown = [*named, others(rest)] if rest else named
    columns: list[_Column[TenantRates]] = [
        _Column("tenant", lambda one: one.tenant, justify="left"),
        _Column("share", lambda one: Text(f"{one.share:.1%}", _COLOURS[one.standing])),
        _Column("due", lambda one: f"{one.entitled_share:.1%}" if one.entitled_share else "-", 50),
        _Column("share│due", bar, 60, "left", is_bar=True),
        _Column("rank", lambda one: "-" if one.rank is None else str(one.rank), 50),
        _Column("run", lambda one: f"{one.running:,}"),
        _Column("wait", lambda one: f"{one.waiting:,}"),
        _Column("tok/s", lambda one: f"{one.output_tok_s:,.0f}", 70),
        _Column("weight", lambda one: f"{one.weight:g}", 80),
        _Column("service", lambda one: _short(one.service), 90),
    ]
    if any(one.rejected_per_s for one in shown):
        columns.append(_Column("429/s", lambda one: f"{one.rejected_per_s:.1f}", 90))
    if any(one.service_class for one in shown):
        columns.append(_Column("class", lambda one: one.service_class or "", 110, "left"))
    return _table(columns, shown, width)


def _engines(engines: Sequence[EngineRates], width: int, max_rows: int) -> Table:
    shown = engines[:max_rows]
    hidden = len(engines) - len(shown)
    columns: list[_Column[EngineRates]] = [
        _Column("engine", lambda one: one.engine, justify="left"),
        _Column("run", lambda one: f"{one.running}/{one.max_num_seqs}"),
        _Column("wait", lambda one: f"{one.waiting:,}"),
        _Column("load", lambda one: _short(one.load), 100),
        _Column(
            "KV device",
            lambda one: _filled(one.device_blocks_used, one.device_blocks_total),
            70,
            "left",
            is_bar=True,
        ),
        _Column(
            "KV host",
            lambda one: _filled(one.host_blocks_used, one.host_blocks_total),
            70,
            "left",
            is_bar=True,
        ),
        _Column("out/s", lambda one: f"{one.swaps_out_per_s:.1f}", 50),
        _Column("in/s", lambda one: f"{one.swaps_in_per_s:.1f}", 50),
        _Column("blocks/s", lambda one: _pair(one.blocks_out_per_s, one.blocks_in_per_s), 90),
        _Column("stall", lambda one: f"{one.stall_share:.1%}"),
    ]
    if any(one.is_draining for one in shown):
        columns.insert(1, _Column("", _drains, justify="left"))
    table = _table(columns, shown, width)
    if hidden:
        table.caption = f"and {hidden} engines with less to do"
        table.caption_justify = "left"
    return table


def _drains(engine: EngineRates) -> RenderableType:
    return Text("drains" if engine.is_draining else "", "yellow")


def _table(columns: Sequence[_Column[Row]], rows: Sequence[Row], width: int) -> Table:
    wide_enough = [column for column in columns if width >= column.from_width]
    table = Table(
        box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0), pad_edge=False, expand=True
    )
    for column in wide_enough:
        table.add_column(
            column.title,
            justify=column.justify,
            ratio=1 if column.is_bar else None,
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in rows:
        table.add_row(*(column.cell(row) for column in wide_enough))
    return table


def _filled(used: int, total: int) -> RenderableType:
    if not total:
        return Text("-", "dim")
    share = used / total
    return Bar(used, total, "red" if share > 0.95 else "yellow" if share > 0.8 else "cyan")


def _pair(out: float, into: float) -> str:
    return f"{_short(out)}/{_short(into)}"


def _short(value: float) -> str:
    """Four characters or so: 950, 12k, 3.4M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            scaled = value / size
            return f"{scaled:.1f}{unit}" if scaled < 10 else f"{scaled:.0f}{unit}"
    return f"{value:.0f}"
