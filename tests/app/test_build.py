"""The application as Serve gets it: which deployments, how many, and what each is told."""

import pickle
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from ray import cloudpickle
from ray.serve import Deployment
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary
from ray.serve._private.build_app import build_app

from app.build import build, live_settings, new_fleet
from app.settings import (
    AppArgs,
    AutoscalingSettings,
    FairnessSettings,
    MetricsSettings,
    TracingSettings,
)
from deployments.engine_replica import GOODBYE_S
from ops.metrics.push import PushTarget
from ops.tracing.plan import TracingPlan
from scheduler.admission import AdmitRequest, EngineCapacity
from scheduler.policies.catalogue import POLICIES
from scheduler.scaling import ScalingGoal
from scheduler.service import ServiceWeights
from scheduler.shares import TenantShares


@pytest.fixture
def model(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text("{}")
    return str(tmp_path)


def deployments(args: AppArgs) -> dict[str, Deployment]:
    """The application's deployments by name, as Serve takes it apart."""
    application = build_app(build(args), name="fastswitch")
    assert application.ingress_deployment_name == "Gateway"
    return {deployment.name: deployment for deployment in application.deployments}


def test_an_application_is_a_router_engines_and_gateways(model: str) -> None:
    """As many of each as the settings say; there is one router."""
    made = deployments(AppArgs(model=model, device="cpu", replicas=3, gateways=2))

    numbers = {name: deployment.num_replicas for name, deployment in made.items()}
    assert numbers == {"Router": 1, "Engine": 3, "Gateway": 2}


@pytest.mark.parametrize(("device", "num_gpus"), [("cpu", 0), ("cuda", 2)])
def test_an_engine_takes_the_gpus_of_its_model(model: str, device: Any, num_gpus: int) -> None:
    """None on the CPU; nobody else takes any, and nobody reserves cores."""
    made = deployments(AppArgs(model=model, device=device, tensor_parallel_size=2))

    gpus = {name: each.ray_actor_options["num_gpus"] for name, each in made.items()}
    assert gpus == {"Router": 0, "Engine": num_gpus, "Gateway": 0}
    assert {each.ray_actor_options["num_cpus"] for each in made.values()} == {0}


def test_whoever_is_to_go_has_the_time_to(model: str) -> None:
    """Serve kills after what the drain and the goodbye take together."""
    args = AppArgs(model=model, device="cpu", drain_s=40, gateway_drain_s=700, surge_percent=50)
    made = deployments(args)

    assert made["Engine"].init_kwargs["drain_s"] == 40
    configs = {name: each._deployment_config for name, each in made.items()}
    assert configs["Engine"].graceful_shutdown_timeout_s == 40 + GOODBYE_S
    assert configs["Gateway"].graceful_shutdown_timeout_s > 700
    surge = {name: config.max_surge_percent for name, config in configs.items()}
    # A second router would not know what the first one knows.
    assert surge == {"Router": 0, "Engine": 50, "Gateway": 100}


def test_the_number_of_engines_may_follow_the_work(model: str) -> None:
    """Within the bounds, from the number at the start, by our policy; else it is fixed."""
    scaling = AutoscalingSettings(
        min_replicas=2, max_replicas=5, target_delay_s=3.0, upscale_delay_s=1, downscale_delay_s=9
    )
    made = deployments(AppArgs(model=model, device="cpu", replicas=3, autoscaling=scaling))
    config = made["Engine"]._deployment_config.autoscaling_config

    assert config is not None
    bounds = config.min_replicas, config.initial_replicas, config.max_replicas
    assert bounds == (2, 3, 5)
    assert (config.upscale_delay_s, config.downscale_delay_s) == (1, 9)
    policy = config.policy.get_policy()(**config.policy.policy_kwargs)
    goal = ScalingGoal(3.0, scaling.target_switches_per_s, min_engines=2, max_engines=5)
    assert (type(policy).__name__, policy._goal) == ("PressurePolicy", goal)
    fixed = deployments(AppArgs(model=model, device="cpu", replicas=3))["Engine"]
    assert fixed._deployment_config.autoscaling_config is None


def test_the_router_is_told_when_nothing_is_said_any_more(model: str) -> None:
    """Serve calls a deployment only while it has a ``user_config``."""
    made = deployments(AppArgs(model=model, device="cpu"))
    assert {name: each.user_config for name, each in made.items()} == {
        "Router": {},
        "Engine": None,
        "Gateway": None,
    }


def test_what_changes_while_it_runs_goes_over_what_it_was_started_with(model: str) -> None:
    """Policy, prices, limits and tenants are those of the new settings."""
    args = AppArgs(model=model, fairness=FairnessSettings(policy="fcfs", max_wait_s=7.0))
    live = live_settings(
        args,
        {
            "fairness": {"policy": "vtc", "output_weight": 4.0, "update_s": 0.5},
            "tenants": {"alice": {"weight": 3.0}},
        },
    )

    assert live.make_policy(live.service, TenantShares()).name == "vtc"
    assert live.service == ServiceWeights(1.0, 4.0)
    assert (live.limits.update_s, live.limits.max_wait_s) == (0.5, 7.0)
    assert live.shares.shares["alice"].weight == 3.0


def test_nothing_queues_in_front_of_the_engines(model: str) -> None:
    """They queue by priority; Serve's own queues never fill up before."""
    made = deployments(AppArgs(model=model, device="cpu"))
    assert all(each.max_ongoing_requests >= 1_000_000 for each in made.values())


def test_gateway_and_engines_agree_about_the_engine(model: str) -> None:
    """A gateway builds vLLM's configuration from the same arguments as the engines."""
    made = deployments(AppArgs(model=model, device="cpu", max_queued_requests=5))
    engine, gateway = (made[name].init_kwargs["engine_args"] for name in ("Engine", "Gateway"))

    assert gateway == {**engine, "max_num_queued_reqs": 5}
    assert engine["model"] == model


def test_settings_reach_whom_they_are_for(model: str) -> None:
    """Each part gets the values it needs, under its own names for them."""
    args = AppArgs(
        model=model,
        device="cpu",
        api_args={"enable_auto_tool_choice": False},
        admit_timeout_s=0.5,
        continuation_timeout_s=7.0,
        exchange_s=0.2,
        peer_host="127.0.0.1",
        node_cache=False,
        metrics=MetricsSettings(push_url="http://pushgateway:9091", push_s=5, max_tenants=7),
    )
    made = {name: each.init_kwargs for name, each in deployments(args).items()}

    assert made["Router"]["host"] == made["Engine"]["host"] == "127.0.0.1"
    assert made["Engine"]["exchange_s"] == 0.2
    assert made["Engine"]["has_node_cache"] is False
    plans = [made[name]["metrics"] for name in ("Router", "Engine", "Gateway")]
    assert [plan.outlets.push for plan in plans] == 3 * [PushTarget("http://pushgateway:9091", 5)]
    assert plans[0].max_tenants == 7
    assert made["Gateway"]["admit_timeout_s"] == 0.5
    assert made["Gateway"]["continuation_timeout_s"] == 7.0
    assert made["Gateway"]["api_args"] == {"enable_auto_tool_choice": False}


def test_all_that_a_replica_gets_can_be_sent_to_it(model: str) -> None:
    """Classes, settings and factories cross processes; handles are Serve's own affair."""
    for each in deployments(AppArgs(model=model, device="cpu")).values():
        settings = {
            name: value
            for name, value in each.init_kwargs.items()
            if name not in ("router", "engines")
        }
        sent = cloudpickle.dumps((each.func_or_class, settings))
        cls, received = pickle.loads(sent)  # noqa: S301 - our own bytes
        assert cls.__name__ == each.name.replace("Engine", "EngineReplica")
        assert received.keys() == settings.keys()


def test_serve_checks_the_settings_before_it_builds(model: str) -> None:
    """``serve deploy`` hands over plain values: they become settings, or an error says why not."""
    built = call_user_app_builder_with_args_if_necessary(
        build, {"model": model, "device": "cpu", "replicas": 4}
    )
    made = {each.name: each for each in build_app(built, name="fastswitch").deployments}
    assert made["Engine"].num_replicas == 4

    with pytest.raises(ValidationError, match="replica"):
        call_user_app_builder_with_args_if_necessary(build, {"replica": 4})


def test_fairness_settings_make_the_fleet() -> None:
    """Weights of tokens and the quantum are in force in a new router."""
    fleet = new_fleet(FairnessSettings(input_weight=3.0, output_weight=5.0))
    fleet.join("engine-a", EngineCapacity(max_num_seqs=8, blocks_total=100, block_tokens=16))
    fleet.admit(AdmitRequest("r1", "acme", None, 10, 10, 0.0))

    snapshot: Any = fleet.snapshot()
    assert snapshot["policy"] == "vtc"
    assert snapshot["engines"]["engine-a"]["load"] == 10 * 3.0 + 10 * 5.0


@pytest.mark.parametrize("policy", POLICIES)
def test_one_setting_chooses_the_policy(policy: str) -> None:
    """Whichever of the catalogue it is, the router's fleet ranks by it."""
    assert new_fleet(FairnessSettings(policy=policy)).snapshot()["policy"] == policy


@pytest.mark.parametrize("max_tool_ttl_s", [0.0, 5.0])
def test_pins_are_told_of_unless_they_are_off(max_tool_ttl_s: float) -> None:
    """With a longest time of nought engines are told that there will be none."""
    fleet = new_fleet(FairnessSettings(max_tool_ttl_s=max_tool_ttl_s))

    assert fleet.take_pins("engine-a") == ({} if max_tool_ttl_s else None)


def test_tracing_is_off_until_it_has_an_endpoint(model: str) -> None:
    """Then gateways make spans, and engines tell them what becomes of requests."""
    off = deployments(AppArgs(model=model, device="cpu"))
    traced = TracingSettings(otlp_endpoint="http://collector:4318", sample_share=0.5)
    on = deployments(AppArgs(model=model, device="cpu", tracing=traced))

    assert off["Gateway"].init_kwargs["tracing"] is None
    assert off["Engine"].init_kwargs["engine_args"]["disable_log_stats"] is True
    assert on["Gateway"].init_kwargs["tracing"] == TracingPlan(
        "http://collector:4318/v1/traces", 0.5
    )
    assert on["Engine"].init_kwargs["engine_args"]["disable_log_stats"] is False
