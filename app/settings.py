"""Settings: what ``args:`` of serve_config.yaml may say, checked once, and what follows from it.

Owns every setting's name, meaning, default and bounds. Code inside gets the values it needs, not
this model; nothing else reads the environment or a file for settings.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from app.tenants_file import Entitlement, TenantName
from scheduler.errors import PolicyImportError, UnknownPolicyError
from scheduler.policies.catalogue import POLICIES, PolicyOptions, policy_factory
from scheduler.policies.deadline import LatencyTargets
from scheduler.shares import ServiceClass

DEMO_MODEL = "demo"

# Named apart because they have a home of their own above; given twice, one would silently lose.
_OWN_ENGINE_ARGS = frozenset(
    {
        "model",
        "served_model_name",
        "dtype",
        "max_model_len",
        "max_num_seqs",
        "max_num_batched_tokens",
        "tensor_parallel_size",
        "scheduler_cls",
        "worker_cls",
        "scheduling_policy",
        "kv_transfer_config",
        "disable_log_stats",
        "kv_cache_memory_bytes",
        "max_num_queued_reqs",
        "additional_config",
    }
)


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TenantSettings(Entitlement):
    """One tenant, or the defaults of all, where there is no tenants file."""


class InteractiveTargets(_Settings):
    """What `deadline` promises where somebody waits for the answer."""

    ttft_s: float = Field(default=1.0, ge=0.001, le=86_400, description="Time to first token.")
    tbt_s: float = Field(default=0.2, ge=0.001, le=3600, description="Time between tokens.")


class BatchTargets(_Settings):
    """What `deadline` promises where nobody does."""

    ttft_s: float = Field(default=60.0, ge=0.001, le=86_400, description="Time to first token.")
    tbt_s: float = Field(default=2.0, ge=0.001, le=3600, description="Time between tokens.")


class ClassSettings(_Settings):
    """The service classes there are."""

    interactive: InteractiveTargets = InteractiveTargets()
    batch: BatchTargets = BatchTargets()

    def targets(self) -> dict[ServiceClass, LatencyTargets]:
        return {
            ServiceClass.INTERACTIVE: LatencyTargets(
                self.interactive.ttft_s, self.interactive.tbt_s
            ),
            ServiceClass.BATCH: LatencyTargets(self.batch.ttft_s, self.batch.tbt_s),
        }


class FairnessSettings(_Settings):
    """How the fleet shares its engines between tenants."""

    policy: str = Field(
        default="vtc",
        description=f"Who runs next: {', '.join(POLICIES)}, or module:Class (docs/policies.md).",
    )
    policy_args: dict[str, Any] = Field(
        default_factory=dict, description="Keyword arguments of a policy named as module:Class."
    )
    input_weight: float = Field(
        default=1.0, gt=0, le=1000, description="Service of one prompt token."
    )
    output_weight: float = Field(
        default=2.0, gt=0, le=1000, description="Service of one generated token."
    )
    quantum: float = Field(
        default=512.0,
        gt=0,
        le=1e9,
        description="Service units two tenants may differ by before their order changes: smaller "
        "is fairer at each moment, larger switches less.",
    )
    batch_lag: float = Field(
        default=8192.0,
        ge=0,
        le=1e9,
        description="Service units that interactive work may get ahead of batch work.",
    )
    head_start: float = Field(
        default=2048.0,
        ge=0,
        le=1e9,
        description="Service units that a tenant with few requests may get ahead of those that "
        "have many.",
    )
    classes: ClassSettings = ClassSettings()
    slack_quantum_s: float = Field(
        default=0.25,
        gt=0,
        le=3600,
        description="Seconds that two requests' slack may differ by before their order changes.",
    )
    update_frequency: float = Field(
        default=0.02,
        gt=0,
        le=1,
        description="Updates of `random` and `markov` per engine step.",
    )
    seed: int = Field(default=1, description="Of the priorities of `random` and `markov`.")
    update_s: float = Field(
        default=0.1,
        ge=0.01,
        le=60,
        description="Seconds between two computations of all priorities.",
    )
    max_wait_s: float = Field(
        default=60.0,
        ge=1,
        le=1e9,
        description="Seconds after which the longest waiting request of a tenant runs first, "
        "however low its rank.",
    )
    max_switches_per_s: float | None = Field(
        default=100.0,
        gt=0,
        le=1e6,
        description="Running requests per engine and second that may make way for better-ranked "
        "ones; null for no bound. Half of what is saved up is kept for requests that never ran.",
    )
    max_tool_ttl_s: float = Field(
        default=30.0,
        ge=0,
        le=600,
        description="Longest time for which a turn's KV stays on the device while its client runs "
        "the tool it has called (how long pays is learned from each tool); 0: not at all.",
    )

    @model_validator(mode="after")
    def _policy_can_be_made(self) -> "FairnessSettings":
        if self.policy_args and ":" not in self.policy:
            raise ValueError(
                f"policy_args are for a policy named as module:Class; {self.policy} has none"
            )
        try:
            policy_factory(self.policy, self.policy_options())
        except (UnknownPolicyError, PolicyImportError) as error:
            raise ValueError(str(error)) from None
        return self

    def policy_options(self) -> PolicyOptions:
        return PolicyOptions(
            quantum=self.quantum,
            batch_lag=self.batch_lag,
            head_start=self.head_start,
            targets=self.classes.targets(),
            slack_quantum_s=self.slack_quantum_s,
            update_frequency=self.update_frequency,
            seed=str(self.seed),
            own=self.policy_args,
        )


def _checked_http_address(value: str) -> str:
    if not _is_http_address(value):
        raise ValueError("http://HOST:PORT is wanted, with no name or password in it")
    return value


def _is_http_address(value: str) -> bool:
    try:
        url = urlsplit(value)
        url.port  # noqa: B018  (raises where it is none)
    except ValueError:
        return False
    is_plain = url.username is None and not url.query and not url.fragment
    is_whole = url.scheme in ("http", "https") and bool(url.hostname)
    return is_plain and is_whole and value.isascii() and value.isprintable() and " " not in value


HttpAddress: TypeAlias = Annotated[str, AfterValidator(_checked_http_address)]


class MetricsSettings(_Settings):
    """What is measured, and where it goes beside every gateway's /metrics."""

    push_url: HttpAddress | None = Field(
        default=None, description="A Prometheus Pushgateway, http://HOST:PORT; left out: no push."
    )
    push_s: float = Field(default=10.0, ge=1, le=60, description="Seconds between two pushes.")
    scrape_port: int | None = Field(
        default=None,
        ge=1024,
        le=65_000,
        description="First port where router and engines can be scraped, each on the next free "
        "one of its node; left out: they listen nowhere.",
    )
    max_tenants: int = Field(
        default=50,
        ge=1,
        le=10_000,
        description="Tenants with metrics of their own; configured ones always have.",
    )
    good_ttft_s: float = Field(
        default=1.0, gt=0, le=86_400, description="Time to first token that goodput allows."
    )
    good_tbt_s: float = Field(
        default=0.2, gt=0, le=3600, description="Mean time between tokens that goodput allows."
    )
    vllm: bool = Field(default=True, description="vLLM's own metrics too.")


class TracingSettings(_Settings):
    """Spans of requests, for an OpenTelemetry collector."""

    otlp_endpoint: HttpAddress | None = Field(
        default=None,
        description="Where a collector takes OTLP over HTTP, http://HOST:4318; left out: tracing "
        "is off. Without a path /v1/traces is meant.",
    )
    sample_share: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Of requests without a `traceparent` of the caller's, which decides itself.",
    )

    def otlp_url(self) -> str:
        """The endpoint with its path. There has to be one."""
        assert self.otlp_endpoint is not None
        url = urlsplit(self.otlp_endpoint)
        return (
            self.otlp_endpoint if url.path.strip("/") else f"{url.scheme}://{url.netloc}/v1/traces"
        )


class AutoscalingSettings(_Settings):
    """How the number of engines follows what they have to do."""

    min_replicas: int = Field(default=1, ge=1, le=1000, description="Engines, at least.")
    max_replicas: int = Field(ge=1, le=1000, description="Engines, at most.")
    target_delay_s: float = Field(
        default=2.0,
        ge=0.01,
        le=3600,
        description="Mean wait of requests that have not run yet, batch work aside, above which "
        "there are to be more engines.",
    )
    target_switches_per_s: float = Field(
        default=50.0,
        gt=0,
        le=1e6,
        description="Running requests that make way for others, per engine and second, above "
        "which there are to be more.",
    )
    upscale_delay_s: float = Field(
        default=10.0, ge=0, le=86_400, description="How long that has to be so."
    )
    downscale_delay_s: float = Field(
        default=300.0,
        ge=0,
        le=86_400,
        description="How long fewer engines would have to do before one goes.",
    )

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> "AutoscalingSettings":
        if self.max_replicas < self.min_replicas:
            raise ValueError(
                f"max_replicas is {self.max_replicas}, less than min_replicas, {self.min_replicas}"
            )
        return self


class AppArgs(_Settings):
    """What ``args:`` of serve_config.yaml may say; anything else is an error."""

    model: str = Field(
        default=DEMO_MODEL,
        min_length=1,
        description="A model folder, a Hugging Face name, or 'demo': a small model made here.",
    )
    served_model_name: str | None = Field(
        default=None, description="The name clients use; the model's own when left out."
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"
    replicas: int = Field(
        default=2, ge=1, le=1000, description="Engines; with autoscaling those at the start."
    )
    autoscaling: AutoscalingSettings | None = Field(
        default=None, description="Left out: as many engines as replicas says."
    )
    gateways: int = Field(default=1, ge=1, le=100, description="HTTP frontends.")
    tensor_parallel_size: int = Field(default=1, ge=1, le=64, description="GPUs per engine.")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    max_model_len: int | None = Field(
        default=None, gt=0, description="Longest prompt plus output, tokens."
    )
    max_num_seqs: int = Field(
        default=64, gt=0, le=4096, description="Requests running at once per engine."
    )
    max_num_batched_tokens: int | None = Field(
        default=None,
        gt=0,
        description="Tokens per engine step; left out: vLLM's choice, on a CPU 128, so that a step "
        "with prompts in it keeps nobody waiting for long.",
    )
    kv_cache_gib: float | None = Field(
        default=None,
        gt=0,
        description="KV memory per engine; on a GPU left out: what vLLM finds free.",
    )
    host_kv_gib: float = Field(
        default=1.0,
        ge=0,
        description="Host memory per engine for switched-out KV; 0 recomputes instead.",
    )
    node_cache: bool = Field(
        default=True,
        description="That host memory lies in the node's shared memory (/dev/shm) and outlives an "
        "engine that dies: its successor goes on with the KV that is in there.",
    )
    engine_args: dict[str, Any] = Field(
        default_factory=dict, description="More of vLLM's engine arguments, by their names."
    )
    api_args: dict[str, Any] = Field(
        default_factory=dict,
        description="More of vLLM's API server settings, by their names (tool_call_parser ...).",
    )
    tenants: dict[TenantName, TenantSettings] = Field(
        default_factory=dict, description="Weights, classes and limits by tenant; keys are off."
    )
    tenant_defaults: TenantSettings = Field(
        default=TenantSettings(),
        description="Of tenants that `tenants` does not name, and where it leaves something out.",
    )
    tenants_file: Path | None = Field(
        default=None,
        description="Tenants with API keys; re-read when it changes (see `fastswitch keys`).",
    )
    fairness: FairnessSettings = FairnessSettings()
    metrics: MetricsSettings = MetricsSettings()
    tracing: TracingSettings = TracingSettings()
    peer_host: str | None = Field(
        default=None,
        description="Address on which engines and router listen for gateways; left out: the "
        "address by which Ray's other nodes reach theirs.",
    )
    exchange_s: float = Field(
        default=0.1,
        ge=0.01,
        le=10,
        description="Seconds between an engine's reports to the router.",
    )
    admit_timeout_s: float = Field(
        default=0.25,
        gt=0,
        le=60,
        description="Longest wait for the router before a gateway goes alone.",
    )
    continuation_timeout_s: float = Field(
        default=60.0,
        ge=0,
        le=3600,
        description="Longest wait of a request for an engine where the last one has died.",
    )
    drain_s: float = Field(
        default=30.0,
        ge=0,
        le=3600,
        description="How long an engine that is to go (a redeploy, fewer replicas) finishes its "
        "requests; what is left then goes on with another engine.",
    )
    gateway_drain_s: float = Field(
        default=600.0,
        ge=0,
        le=86_400,
        description="How long a gateway that is to go finishes its requests; its clients' "
        "connections cannot go elsewhere.",
    )
    surge_percent: int = Field(
        default=0,
        ge=0,
        le=100,
        description="Engines that a redeploy may start before it ends old ones, in percent of "
        "all, where there are GPUs and memory for them; 0 ends one first, or one in five.",
    )
    max_queued_requests: int = Field(
        default=10_000,
        gt=0,
        description="Unfinished requests per gateway; past it 503 with Retry-After.",
    )
    max_body_bytes: int = Field(
        default=16 * 2**20, gt=0, description="Largest request body; past it 413."
    )

    @field_validator("engine_args")
    @classmethod
    def _refuse_own(cls, value: dict[str, Any]) -> dict[str, Any]:
        doubled = sorted(_OWN_ENGINE_ARGS & value.keys())
        if doubled:
            raise ValueError(f"{', '.join(doubled)}: set by the application, not in engine_args")
        return value

    @field_validator("engine_args", "api_args")
    @classmethod
    def _plain_data(cls, value: dict[str, Any]) -> dict[str, Any]:
        try:
            json.dumps(value)
        except TypeError as error:
            raise ValueError(f"only plain values can be passed on: {error}") from None
        return value

    @property
    def max_replicas(self) -> int:
        """Engines, at most."""
        return self.autoscaling.max_replicas if self.autoscaling else self.replicas

    @model_validator(mode="after")
    def _starts_within_bounds(self) -> "AppArgs":
        scaling = self.autoscaling
        if scaling and not scaling.min_replicas <= self.replicas <= scaling.max_replicas:
            raise ValueError(
                f"replicas is {self.replicas}: with autoscaling from {scaling.min_replicas} to "
                f"{scaling.max_replicas} engines it is one of these"
            )
        return self

    @model_validator(mode="after")
    def _one_source_of_tenants(self) -> "AppArgs":
        if self.tenants_file is None:
            return self
        if self.tenants:
            raise ValueError("tenants and tenants_file are both given; use one of them")
        if self.tenant_defaults != TenantSettings():
            raise ValueError("tenant_defaults and tenants_file are both given; use one of them")
        return self
