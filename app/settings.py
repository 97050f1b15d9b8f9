"""Settings: what ``args:`` of serve_config.yaml may say, checked once, and what follows from it.

Owns every setting's name, meaning, default and bounds. Code inside gets the values it needs, not
this model; nothing else reads the environment or a file for settings.
"""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from app.tenants_file import TenantName, Weight

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
        "scheduling_policy",
        "kv_transfer_config",
        "disable_log_stats",
        "kv_cache_memory_bytes",
        "max_num_queued_reqs",
    }
)


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TenantSettings(_Settings):
    """One tenant, where there is no tenants file."""

    weight: Weight = 1.0


class FairnessSettings(_Settings):
    """How the fleet shares its engines between tenants."""

    policy: Literal["vtc"] = "vtc"
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
    update_s: float = Field(
        default=0.1,
        ge=0.01,
        le=60,
        description="Seconds between two computations of all priorities.",
    )


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
    replicas: int = Field(default=2, ge=1, le=1000, description="Engines.")
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
        default=None, gt=0, description="Tokens per engine step."
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
    engine_args: dict[str, Any] = Field(
        default_factory=dict, description="More of vLLM's engine arguments, by their names."
    )
    api_args: dict[str, Any] = Field(
        default_factory=dict,
        description="More of vLLM's API server settings, by their names (tool_call_parser ...).",
    )
    tenants: dict[TenantName, TenantSettings] = Field(
        default_factory=dict, description="Weights by tenant, where keys are off."
    )
    tenants_file: Path | None = Field(
        default=None,
        description="Tenants with API keys; re-read when it changes (see `fastswitch keys`).",
    )
    fairness: FairnessSettings = FairnessSettings()
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
        description="Longest wait of a request whose engine was lost for one to go on with.",
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

    @model_validator(mode="after")
    def _one_source_of_tenants(self) -> "AppArgs":
        if self.tenants and self.tenants_file is not None:
            raise ValueError("tenants and tenants_file are both given; use one of them")
        return self
