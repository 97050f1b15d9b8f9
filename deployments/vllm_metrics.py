"""vLLM's own metrics, each in the process that has something to count.

Owns which half of them is whose. vLLM's server counts all of them in its one frontend, to which
the engine sends its half with every step. Here an engine's half stays in the engine's process,
with the engine's name as label, and costs the way to the gateways nothing; a gateway's half has
the requests of all engines. One of the adapters: ``tests/deployments/test_vllm_contract.py``.
"""

from dataclasses import dataclass
from typing import Any

from prometheus_client import REGISTRY, Counter, Gauge, Histogram
from prometheus_client.core import Metric
from vllm.config import VllmConfig
from vllm.v1.engine import EngineCoreOutputs
from vllm.v1.metrics.loggers import PrometheusStatLogger
from vllm.v1.metrics.prometheus import unregister_vllm_metrics

# Everything that vLLM's logger takes from an engine's statistics begins so; the rest is counted
# where requests come in and answers go out.
ENGINE_SIDE = (
    "vllm:cache_config_info",
    "vllm:engine_sleep_state",
    "vllm:external_prefix_cache_",
    "vllm:kv_",
    "vllm:lora_requests_info",
    "vllm:num_requests_",
    "vllm:prefix_cache_",
    "vllm:prompt_tokens_cached_by_source",
)


def is_engine_side(name: str) -> bool:
    return name.startswith(ENGINE_SIDE)


def _registered(metric: type, *, engine_side: bool) -> Any:
    """``metric`` as vLLM makes it, shown only where it belongs to the side asked for."""

    def make(name: str, **settings: Any) -> Any:
        shown = REGISTRY if is_engine_side(name) == engine_side else None
        return metric(name, registry=shown, **settings)

    return staticmethod(make)


class EngineSideLogger(PrometheusStatLogger):
    """vLLM's logger in an engine's process."""

    _gauge_cls = _registered(Gauge, engine_side=True)
    _counter_cls = _registered(Counter, engine_side=True)
    _histogram_cls = _registered(Histogram, engine_side=True)


class GatewaySideLogger(PrometheusStatLogger):
    """vLLM's logger in a gateway."""

    _gauge_cls = _registered(Gauge, engine_side=False)
    _counter_cls = _registered(Counter, engine_side=False)
    _histogram_cls = _registered(Histogram, engine_side=False)


class EngineStats:
    """Keeps an engine's statistics in its process. Used from the engine's output thread."""

    def __init__(self, vllm_config: VllmConfig, engine_id: str) -> None:
        self._engine_id = engine_id
        self._logger = EngineSideLogger(vllm_config, [engine_id])
        self._logger.log_engine_initialized()

    def keep(self, outputs: EngineCoreOutputs) -> bool:
        """Take the statistics out of ``outputs``; the result is whether there is more in them."""
        if outputs.scheduler_stats is not None:
            self._logger.record(outputs.scheduler_stats, None, engine_idx=self._engine_id)
            outputs.scheduler_stats = None
        return bool(outputs.outputs or outputs.finished_requests or outputs.utility_output)


@dataclass(frozen=True, slots=True)
class VllmFamilies:
    """vLLM's metrics by the side that shows them."""

    engine: list[Metric]
    gateway: list[Metric]


def vllm_families(vllm_config: VllmConfig) -> VllmFamilies:
    """What vLLM would count for such an engine. Takes its metrics off this process's registry."""
    EngineStats(vllm_config, "engine")
    engine = _registered_families()
    GatewaySideLogger(vllm_config, [0])
    gateway = _registered_families()
    unregister_vllm_metrics()
    return VllmFamilies(engine, gateway)


def _registered_families() -> list[Metric]:
    families = [each for each in REGISTRY.collect() if each.name.startswith("vllm:")]
    return sorted(families, key=lambda family: family.name)
