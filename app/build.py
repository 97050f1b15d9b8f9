"""``build(args) -> Application``: the deployments put together, for Serve.

``serve run``, ``serve deploy`` and ``fastswitch serve`` all end here. Deployment classes are
plain classes; this is the one place where they are wrapped.
"""
# No `from __future__ import annotations` in this file: Ray checks `args` only when the annotation
# is a class, and that import turns it into a string (the checks then vanish).

import os
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from random import Random
from typing import Any

from ray import serve
from ray.serve import Application
from ray.serve.config import AutoscalingConfig, AutoscalingPolicy
from ray.serve.schema import LoggingConfig

from app.devices import has_cuda
from app.edge.dress import HttpEdge
from app.engine_settings import engine_args, engine_environment
from app.live_settings import with_live
from app.models import resolve_model
from app.settings import AppArgs, FairnessSettings, MetricsSettings, TracingSettings
from app.tenants import open_directory
from deployments.engine_replica import GOODBYE_S, EngineReplica
from deployments.gateway import Gateway
from deployments.router import LiveSettings, Router
from deployments.served import served, served_app
from ops.metrics.outlet import Outlets
from ops.metrics.plan import MetricsPlan
from ops.metrics.push import PushTarget
from ops.metrics.request_metrics import LatencyGoal
from ops.tracing.plan import TracingPlan
from scheduler.fleet import FleetLimits, FleetScheduler
from scheduler.policies.catalogue import policy_factory
from scheduler.scaling import ScalingGoal
from scheduler.service import ServiceWeights

# A log line per request costs more than the request's way through the gateway.
QUIET = LoggingConfig(enable_access_log=False, log_level="WARNING")
ROUTER_STOP_S = 15.0
# Serve keeps a gateway open for half a minute, for HAProxy on other nodes to turn elsewhere.
GATEWAY_STOP_S = 45.0
STOP_CHECK_S = 0.5
# The autoscaler hears of the fleet so often, and goes by the mean over so long.
SCALING_REPORT_S, SCALING_WINDOW_S = 2.0, 6.0


def build(args: AppArgs) -> Application:
    """The gateway in front of the router and the engine replicas."""
    on_cuda = args.device == "cuda" or (args.device == "auto" and has_cuda())
    model = resolve_model(args.model)
    vllm_args = engine_args(args, model, on_cuda=on_cuda)
    directory = partial(open_directory, args.tenants_file, args.tenants, args.tenant_defaults)
    metrics = metrics_plan(args.metrics)

    router = _deployment(
        "Router",
        served(Router),
        num_replicas=1,
        stop_s=ROUTER_STOP_S,
        # Without one Serve would not tell the router when what a file gives is taken out again.
        user_config={},
    ).bind(
        new_fleet=partial(new_fleet, args.fairness),
        new_shares=directory,
        host=args.peer_host,
        metrics=metrics,
        read_live=partial(live_settings, args),
    )
    engines = _deployment(
        "Engine",
        served(EngineReplica),
        num_replicas=args.replicas if args.autoscaling is None else None,
        autoscaling=autoscaling_config(args),
        num_gpus=args.tensor_parallel_size if on_cuda else 0,
        stop_s=args.drain_s + GOODBYE_S,
        surge_percent=args.surge_percent,
    ).bind(
        router=router,
        engine_args=vllm_args,
        engine_env=engine_environment(args, on_cuda=on_cuda, num_cores=os.cpu_count() or 1),
        exchange_s=args.exchange_s,
        host=args.peer_host,
        metrics=metrics,
        drain_s=args.drain_s,
        has_node_cache=args.node_cache,
    )
    return _deployment(
        "Gateway",
        served_app(Gateway),
        num_replicas=args.gateways,
        stop_s=args.gateway_drain_s + GATEWAY_STOP_S,
        # A gateway costs little, and without one nobody would answer.
        surge_percent=100,
    ).bind(
        router=router,
        engines=engines,
        engine_args={**vllm_args, "max_num_queued_reqs": args.max_queued_requests},
        api_args=args.api_args,
        edge=HttpEdge(directory, args.max_body_bytes),
        admit_timeout_s=args.admit_timeout_s,
        continuation_timeout_s=args.continuation_timeout_s,
        metrics=metrics,
        tracing=tracing_plan(args.tracing),
    )


def new_fleet(
    fairness: FairnessSettings,
    clock: Callable[[], float] = time.monotonic,
    random: Random | None = None,
) -> FleetScheduler:
    """The fleet scheduler these settings describe."""
    return FleetScheduler(
        policy_factory(fairness.policy, fairness.policy_options()),
        clock=clock,
        random=random or Random(),
        service=service_weights(fairness),
        limits=fleet_limits(fairness),
    )


def live_settings(args: AppArgs, user_config: object) -> LiveSettings:
    """What a router goes by that was started with ``args``, once it is told ``user_config``.

    Raises:
        LiveSettingsError: something in there is not allowed, or cannot change.
        TenantsFileError: the tenants file is missing or broken by now.
    """
    args = with_live(args, user_config)
    fairness = args.fairness
    return LiveSettings(
        policy_factory(fairness.policy, fairness.policy_options()),
        service_weights(fairness),
        fleet_limits(fairness),
        open_directory(args.tenants_file, args.tenants, args.tenant_defaults),
    )


def autoscaling_config(args: AppArgs) -> AutoscalingConfig | None:
    """What Serve goes by in the number of engines; None where it stays as it is."""
    scaling = args.autoscaling
    if scaling is None:
        return None
    goal = ScalingGoal(
        scaling.target_delay_s,
        scaling.target_switches_per_s,
        min_engines=scaling.min_replicas,
        max_engines=scaling.max_replicas,
    )
    with warnings.catch_warnings():
        # The interval is to move into an environment variable, which Serve does not read yet.
        warnings.simplefilter("ignore", DeprecationWarning)
        return AutoscalingConfig(
            min_replicas=scaling.min_replicas,
            initial_replicas=args.replicas,
            max_replicas=scaling.max_replicas,
            upscale_delay_s=scaling.upscale_delay_s,
            downscale_delay_s=scaling.downscale_delay_s,
            metrics_interval_s=SCALING_REPORT_S,
            look_back_period_s=SCALING_WINDOW_S,
            policy=AutoscalingPolicy(
                policy_function="deployments.autoscaling:PressurePolicy",
                policy_kwargs=asdict(goal),
            ),
        )


def service_weights(fairness: FairnessSettings) -> ServiceWeights:
    return ServiceWeights(fairness.input_weight, fairness.output_weight)


def fleet_limits(fairness: FairnessSettings) -> FleetLimits:
    return FleetLimits(
        update_s=fairness.update_s,
        max_wait_s=fairness.max_wait_s,
        max_tool_ttl_s=fairness.max_tool_ttl_s,
    )


def metrics_plan(settings: MetricsSettings) -> MetricsPlan:
    """What these settings say of metrics, as every process gets it."""
    push = None
    if settings.push_url is not None:
        push = PushTarget(settings.push_url, settings.push_s)
    return MetricsPlan(
        Outlets(push, settings.scrape_port),
        LatencyGoal(settings.good_ttft_s, settings.good_tbt_s),
        settings.max_tenants,
        has_vllm=settings.vllm,
    )


def tracing_plan(settings: TracingSettings) -> TracingPlan | None:
    """Where spans go and how many; None while tracing is off."""
    if settings.otlp_endpoint is None:
        return None
    return TracingPlan(settings.otlp_url(), settings.sample_share)


def _deployment(
    name: str,
    cls: type,
    *,
    num_replicas: int | None,
    stop_s: float,
    autoscaling: AutoscalingConfig | None = None,
    num_gpus: int = 0,
    surge_percent: int = 0,
    user_config: dict[str, Any] | None = None,
) -> serve.Deployment:
    return serve.deployment(
        name=name,
        num_replicas=num_replicas,
        autoscaling_config=autoscaling,
        # Engines queue by priority; a second queue in front of them would undo it.
        max_ongoing_requests=1_000_000,
        health_check_period_s=2,
        health_check_timeout_s=30,
        # From being told to end until Serve kills: the drain is part of it. Serve first waits for
        # requests of its own, of which only gateways have any.
        graceful_shutdown_timeout_s=stop_s,
        graceful_shutdown_wait_loop_s=STOP_CHECK_S,
        max_surge_percent=surge_percent,
        user_config=user_config,
        # The machine's cores are shared on purpose: engines have their own thread counts.
        ray_actor_options={"num_cpus": 0, "num_gpus": num_gpus},
        logging_config=QUIET,
    )(cls)
