"""Settings: what may stand under ``args``, within which bounds, and what is refused."""

import json
import pickle
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from app.engine_settings import engine_args
from app.settings import AppArgs, FairnessSettings, MetricsSettings, TenantSettings, TracingSettings

MODELS: tuple[type[BaseModel], ...] = (
    AppArgs,
    FairnessSettings,
    MetricsSettings,
    TenantSettings,
    TracingSettings,
)


def problem(settings: dict[str, Any]) -> str:
    """What is said of settings that are not allowed."""
    with pytest.raises(ValidationError) as caught:
        AppArgs.model_validate(settings)
    [error] = caught.value.errors()
    return f"{'.'.join(map(str, error['loc']))}: {error['msg']}"


def test_nothing_has_to_be_set() -> None:
    """The defaults serve the demo model on this machine, to nobody's disadvantage."""
    args = AppArgs()

    assert (args.model, args.device, args.replicas) == ("demo", "auto", 2)
    assert (args.tenants, args.tenants_file, args.peer_host) == ({}, None, None)


@pytest.mark.parametrize(
    "settings",
    [
        {"replica": 2},
        {"fairness": {"polcy": "vtc"}},
        {"tenants": {"acme": {"wieght": 2}}},
        {"metrics": {"push": "http://pushgateway:9091"}},
    ],
)
def test_unknown_settings_are_refused(settings: dict[str, Any]) -> None:
    """At every level: a mistyped name would otherwise lose its setting without a word."""
    assert "not permitted" in problem(settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model", ""),
        ("model", 7),
        ("model", None),
        ("device", "gpu"),
        ("dtype", "int8"),
        ("replicas", 0),
        ("replicas", 1001),
        ("replicas", "two"),
        ("replicas", 1.5),
        ("gateways", -1),
        ("tensor_parallel_size", 0),
        ("max_model_len", 0),
        ("max_num_seqs", 0),
        ("max_num_seqs", 5000),
        ("max_num_batched_tokens", -8),
        ("kv_cache_gib", 0),
        ("host_kv_gib", -0.5),
        ("exchange_s", 0),
        ("exchange_s", 11),
        ("admit_timeout_s", 0),
        ("continuation_timeout_s", -1),
        ("max_queued_requests", 0),
        ("max_body_bytes", 0),
        ("engine_args", ["a"]),
        ("tenants", {"no such name!": {}}),
        ("tenants", {"acme": {"weight": 0}}),
        ("tenants", {"acme": {"weight": "heavy"}}),
        ("tenants", {"acme": {"class": "gold"}}),
        ("tenants", {"acme": {"tokens_per_minute": 1}}),
        ("tenants", {"acme": {"max_concurrent": 0}}),
        ("tenant_defaults", {"max_concurrent": -1}),
        ("tenants", ["acme"]),
        ("tenants_file", 5),
        ("fairness", {"policy": "lottery"}),
        ("fairness", {"policy": "no.such.module:Policy"}),
        ("fairness", {"policy": "fcfs", "policy_args": {"a": 1}}),
        ("fairness", {"quantum": 0}),
        ("fairness", {"classes": {"batch": {"ttft_s": 0}}}),
        ("fairness", {"slack_quantum_s": 0}),
        ("fairness", {"update_frequency": 0}),
        ("fairness", {"batch_lag": -1}),
        ("fairness", {"output_weight": -1}),
        ("fairness", {"update_s": 0.001}),
        ("fairness", {"max_switches_per_s": 0}),
        ("metrics", {"push_s": 0.5}),
        ("metrics", {"push_s": 61}),
        ("metrics", {"push_s": "often"}),
        ("metrics", {"scrape_port": 80}),
        ("metrics", {"scrape_port": 65_536}),
        ("metrics", {"max_tenants": 0}),
        ("metrics", {"good_ttft_s": 0}),
        ("metrics", {"good_tbt_s": -1}),
        ("tracing", {"sample_share": 1.5}),
        ("tracing", {"otlp_endpoint": "collector:4318"}),
        ("tracing", {"otlp_endpoint": "grpc://collector:4317"}),
        ("tracing", {"otlp_endpoint": "http://"}),
        ("tracing", {"otlp_endpoint": "http://collector:port"}),
        ("tracing", {"otlp_endpoint": "http://coll ector"}),
    ],
)
def test_values_out_of_bounds_are_refused(name: str, value: object) -> None:
    """By the name of their setting."""
    assert problem({name: value}).startswith(name)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "pushgateway:9091",
        "ftp://pushgateway:9091",
        "http://",
        "http://:9091",
        "http://pushgateway:port",
        "http://pushgateway:70000",
        "http://user:secret@pushgateway:9091",
        "http://pushgateway:9091/?a=b",
        "http://push gateway:9091",
        "http://pushgateway:9091/\n",
    ],
)
def test_a_pushgateway_has_an_http_address(url: str) -> None:
    """Anything else is refused at start: a push that cannot work would only be a line in a log."""
    assert "http://HOST:PORT is wanted" in problem({"metrics": {"push_url": url}})


@pytest.mark.parametrize("url", ["http://10.0.0.1:9091", "https://push.example/prometheus", None])
def test_a_pushgateway_may_be_anywhere_or_nowhere(url: str | None) -> None:
    """Also behind a path, and over TLS."""
    assert AppArgs.model_validate({"metrics": {"push_url": url}}).metrics.push_url == url


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize(
    ("model", "name"),
    [
        (model, name)
        for model in MODELS
        for name, field in model.model_fields.items()
        if float in (field.annotation, *get_args(field.annotation))
    ],
)
def test_numbers_are_finite(model: type[BaseModel], name: str, value: float) -> None:
    """YAML knows .inf and .nan; no setting means anything with them."""
    with pytest.raises(ValidationError):
        model.model_validate({name: value})


@pytest.mark.parametrize("on_cuda", [False, True])
def test_what_the_application_sets_is_not_set_in_engine_args_too(
    on_cuda: bool,  # noqa: FBT001
) -> None:
    """Given twice, one of the two would silently lose."""
    for name in engine_args(AppArgs(), "model", on_cuda=on_cuda):
        assert "set by the application" in problem({"engine_args": {name: "anything"}})


@pytest.mark.parametrize("name", ["engine_args", "api_args"])
def test_what_is_passed_on_is_plain(name: str) -> None:
    """It crosses processes; a value with a life of its own could not."""
    assert AppArgs.model_validate({name: {"a": [1, None, {"b": "c"}]}})
    assert "only plain values" in problem({name: {"a": object()}})


def test_tenants_come_from_one_place(tmp_path: Path) -> None:
    """Weights or limits beside a tenants file would be silently unused."""
    file = {"tenants_file": tmp_path / "tenants.yaml"}
    assert "use one of them" in problem({"tenants": {"acme": {"weight": 2.0}}, **file})
    assert "use one of them" in problem({"tenant_defaults": {"max_concurrent": 2}, **file})


def test_settings_cross_processes() -> None:
    """Serve hands them to its controller as JSON and to replicas pickled; nobody changes them."""
    batch = TenantSettings.model_validate({"class": "batch", "max_concurrent": "unlimited"})
    args = AppArgs(model="m", tenants={"acme": batch}, kv_cache_gib=0.5)

    assert AppArgs.model_validate(json.loads(args.model_dump_json())) == args
    assert pickle.loads(pickle.dumps(args)) == args  # noqa: S301 - our own bytes
    with pytest.raises(ValidationError):
        args.model = "another"


@pytest.mark.parametrize(
    ("endpoint", "url"),
    [
        ("http://collector:4318", "http://collector:4318/v1/traces"),
        ("https://collector/", "https://collector/v1/traces"),
        ("http://collector:4318/other/path", "http://collector:4318/other/path"),
    ],
)
def test_spans_go_to_the_endpoint_where_collectors_take_them(endpoint: str, url: str) -> None:
    """OTLP has a path of its own; whoever names another means it."""
    settings = TracingSettings(otlp_endpoint=endpoint)
    assert settings.otlp_url() == url
