"""docs/metrics.md: every metric there is, from the code that counts it.

    python -m ops.metrics_page

vLLM's own are asked of vLLM itself, for the engine that the demo model runs on the CPU.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from app.demo_model import write_demo_model
from app.engine_settings import engine_args
from app.settings import AppArgs
from ops.metrics.catalogue import MetricEntry, entries, own_metrics

PAGE = Path(__file__).parents[1] / "docs" / "metrics.md"

INTRODUCTION = """\
# Metrics

Written by `python -m ops.metrics_page`. How they are pushed and scraped, and the dashboards and
alerts made of them: [operating](operating.md#metrics).

A counter is named here as Prometheus shows it, with `_total`; a histogram has `_bucket`, `_sum` and
`_count`. Prometheus adds `job` and `instance`; what is pushed has `application` too. Every process
also has `process_*` (processor time, memory, open files) and `python_info`, a gateway `http_*` of
its web server.
"""

SECTIONS = {
    "Requests": "Counted in each gateway; its `/metrics` has them.",
    "Fleet": "The router's numbers, told by each gateway: take the `max` over them. The label "
    "`tenant` is bounded (`metrics.max_tenants`): configured tenants have their own, and of the "
    "others those that are served most; the rest share `_other`.",
    "Router": "The router's own process: pushed, or scraped at its port (`metrics.scrape_port`).",
    "Engine replica": "The process beside each engine: pushed, or scraped at its port.",
    "vLLM's, in gateways": "What vLLM counts where requests come in and tokens go out. The label "
    "`engine` is always 0 here: a gateway is the frontend of all engines.",
    "vLLM's, in engines": "What vLLM counts in an engine; `engine` is its name in the fleet. From "
    "the engine's process: pushed, or scraped at its port. More with LoRA or speculative decoding.",
}


def page(sections: dict[str, list[MetricEntry]]) -> str:
    """The page for these sections' metrics."""
    parts = [INTRODUCTION]
    for title, metrics in sections.items():
        parts.append(f"\n## {title}\n\n{SECTIONS[title]}\n\n" + "\n".join(_table(metrics)) + "\n")
    return "".join(parts)


def _table(metrics: Iterable[MetricEntry]) -> Iterator[str]:
    yield "| metric | type | labels | meaning |"
    yield "| --- | --- | --- | --- |"
    for metric in metrics:
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        text = " ".join(metric.text.split()).replace("|", "\\|")
        yield f"| `{metric.name}` | {metric.kind} | {labels} | {text} |"


def all_sections() -> dict[str, list[MetricEntry]]:
    """Ours and vLLM's."""
    from deployments.vllm_engine import make_engine_args
    from deployments.vllm_metrics import vllm_families

    with TemporaryDirectory() as folder:
        model = Path(folder) / "demo"
        write_demo_model(model, "tiny")
        settings = AppArgs(model=str(model), device="cpu")
        arguments = engine_args(settings, settings.model, on_cuda=False)
        families = vllm_families(make_engine_args(arguments).create_engine_config())
    return {
        **own_metrics(),
        "vLLM's, in gateways": entries(families.gateway),
        "vLLM's, in engines": entries(families.engine),
    }


if __name__ == "__main__":
    # Not to standard output: vLLM speaks there.
    PAGE.write_text(page(all_sections()), encoding="utf-8")
