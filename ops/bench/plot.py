"""Pictures of benchmark results, for people; the numbers are in the JSON."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NAMES = ("baseline", "fastswitch")
COLOURS = ("#9aa0a6", "#1a73e8")
TENANT_COLOURS = ("#1a73e8", "#d93025", "#f9ab00")


def plot_serve(keys: Mapping[str, Any], path: Path) -> None:
    """Throughput, TTFT and TBT of both servers side by side: all streams above, one below."""
    # Slow to import, and few runs draw.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 6.5), layout="constrained")
    streams = keys["workload"]["streams"]
    rows = ((f"{streams} streams", keys), ("1 stream", keys["single"]))
    panels = figure.subplots(len(rows), 3)
    for (title, results), (throughput, ttft, tbt) in zip(rows, panels, strict=True):
        both = [results[name] for name in NAMES]
        _bars(
            throughput,
            f"{title}: output tok/s",
            [""],
            [[each["throughput_tok_s"]] for each in both],
        )
        for panel, key in ((ttft, "ttft_ms"), (tbt, "tbt_ms")):
            label = f"{title}: {key.removesuffix('_ms').upper()} ms"
            _bars(panel, label, ["p50", "p99"], [list(each[key].values()) for each in both])
    figure.legend(NAMES, loc="outside lower center", ncols=len(NAMES))
    figure.savefig(path, dpi=120)


def plot_switch(keys: Mapping[str, Any], path: Path) -> None:
    """The tails of TTFT and TBT, and throughput, a bar for each mode."""
    from matplotlib.figure import Figure

    modes = keys["modes"]
    figure = Figure(figsize=(11, 1.6 + 0.5 * len(modes)), layout="constrained")
    values = {
        "TTFT ms p99": [one["ttft_ms"]["p99"] for one in modes.values()],
        "TBT ms p99.9": [one["tbt_ms"]["p999"] for one in modes.values()],
        "output tok/s": [one["throughput_tok_s"] for one in modes.values()],
    }
    panels = figure.subplots(1, len(values), sharey=True)
    colours = [COLOURS[mode.startswith("fastswitch")] for mode in modes]
    for panel, (title, widths) in zip(panels, values.items(), strict=True):
        bars = panel.barh(list(modes), widths, color=colours)
        panel.bar_label(bars, fmt=_label, padding=2, fontsize=8)
        panel.set_title(title, fontsize=10)
        panel.margins(x=0.18)
        panel.spines[["top", "right"]].set_visible(False)
    panels[0].invert_yaxis()
    figure.savefig(path, dpi=120)


def plot_policy(
    policy: str,
    courses: Mapping[str, Sequence[tuple[float, float]]],
    waits_s: Mapping[str, Sequence[float]],
    path: Path,
) -> None:
    """Service received over time, and the share of requests that had waited no longer than so."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3.2), layout="constrained")
    service, waits = figure.subplots(1, 2)
    for (tenant, course), colour in zip(courses.items(), TENANT_COLOURS, strict=True):
        service.plot(*zip(*course, strict=True), color=colour, label=tenant)
        waited_ms = sorted(1000 * wait_s for wait_s in waits_s[tenant])
        shares = [(number + 1) / len(waited_ms) for number in range(len(waited_ms))]
        waits.step(waited_ms, shares, where="post", color=colour)
    service.set_title(f"{policy}: service received", fontsize=10)
    service.set_xlabel("seconds")
    waits.set_title("requests with their first token", fontsize=10)
    waits.set_xlabel("milliseconds since they were due")
    waits.set_xscale("log")
    for panel in (service, waits):
        panel.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside lower center", ncols=len(courses))
    figure.savefig(path, dpi=120)


def _bars(panel: Any, title: str, labels: Sequence[str], values: Sequence[Sequence[float]]) -> None:
    width = 0.38
    for index, (heights, colour) in enumerate(zip(values, COLOURS, strict=True)):
        at = [position + (index - 0.5) * width for position in range(len(labels))]
        bars = panel.bar(at, heights, width, color=colour)
        panel.bar_label(bars, fmt=_label, padding=2, fontsize=8)
    panel.set_title(title, fontsize=10)
    panel.set_xticks(range(len(labels)), labels)
    panel.margins(y=0.15)
    panel.spines[["top", "right"]].set_visible(False)


def _label(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
