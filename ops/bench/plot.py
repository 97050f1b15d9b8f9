"""Pictures of benchmark results, for people; the numbers are in the JSON."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

NAMES = ("baseline", "fastswitch")
COLOURS = ("#9aa0a6", "#1a73e8")


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
