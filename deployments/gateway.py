"""Gateway: the HTTP edge's process. vLLM's own API app over all engines of the fleet.

Owns the life of one gateway: find the router, reach the engines, put vLLM's frontend together,
say whether it can serve. What happens to a request before vLLM's app sees it (keys, limits, our
own routes) is the edge's, handed in by ``app.build``.
"""

import asyncio
import json
import logging
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol

from prometheus_client import REGISTRY
from starlette.types import ASGIApp

from deployments.errors import NoEngineLeftError
from deployments.fleet_view import FleetView
from deployments.node import application_name, new_client_index
from deployments.router_link import RouterHandle
from ops.metrics.fleet_collector import FleetCollector
from ops.metrics.outlet import Outlet
from ops.metrics.plan import PLAIN_PLAN, MetricsPlan
from ops.metrics.push import Group
from ops.metrics.request_metrics import RequestMetrics
from ops.metrics.tenant_labels import TenantLabels
from ops.tracing.plan import TracingPlan

if TYPE_CHECKING:
    from fastapi import FastAPI

    from deployments.vllm_client import Caller, FleetClient
    from deployments.vllm_watch import RequestWatch
    from ops.tracing.export import Tracing

logger = logging.getLogger("ray.serve")

FLEET_METRICS_S = 2.0  # well below the interval at which Prometheus reads


class GatewayState(Protocol):
    """What the edge may ask its gateway."""

    @property
    def name(self) -> str: ...

    async def fairness(self) -> bytes: ...

    async def check_ready(self) -> None: ...

    def tools_called(self, tenant: str, conversation: str, tools: list[str]) -> None: ...


class Edge(Protocol):
    """Everything around vLLM's app: who is calling, what is allowed, our own routes."""

    def dress(
        self, app: "FastAPI", gateway: GatewayState, tracing: "Tracing | None" = None
    ) -> ASGIApp: ...

    def current_caller(self) -> "Caller": ...

    def named_tenants(self) -> Collection[str]: ...


class Gateway:
    """One gateway. The ingress deployment's class; all methods run on one event loop."""

    def __init__(  # noqa: PLR0913, PLR0917  (what Serve binds by name, one for one a setting)
        self,
        router: RouterHandle,
        engine_args: Mapping[str, Any],
        api_args: Mapping[str, Any],
        edge: Edge,
        admit_timeout_s: float,
        continuation_timeout_s: float,
        metrics: MetricsPlan = PLAIN_PLAN,
        engines: object | None = None,
        tracing: TracingPlan | None = None,
    ) -> None:
        self._engine_args, self._api_args = dict(engine_args), dict(api_args)
        self._edge = edge
        self._client_index = new_client_index()
        self._fleet = FleetView(router, self._client_index, admit_timeout_s)
        self._continuation_timeout_s = continuation_timeout_s
        self._client: FleetClient | None = None
        self._is_built = False
        self._name = f"gateway-{self._client_index:x}"
        self._metrics = metrics
        self._outlet: Outlet | None = None
        self._tracing_plan = tracing
        self._tracing: Tracing | None = None
        labels = TenantLabels(edge.named_tenants(), metrics.max_tenants)
        self._request_metrics = RequestMetrics(self._name, labels, metrics.goal)
        self._fleet_metrics = FleetCollector(labels)

    @property
    def name(self) -> str:
        """By which metrics, spans and answers tell it from other gateways."""
        return self._name

    async def build(self) -> ASGIApp:
        """Join the fleet and return the app to serve; waits for the first engine."""
        # vLLM takes seconds to import: here, where the engines are starting anyway.
        from deployments.vllm_client import FleetClient
        from deployments.vllm_engine import make_engine_args
        from deployments.vllm_frontend import FleetLLM, adopt_ready, build_api, make_server_args

        vllm_config = make_engine_args(self._engine_args).create_engine_config()
        self._client = FleetClient(
            vllm_config,
            self._fleet,
            self._edge.current_caller,
            self._request_metrics,
            self._continuation_timeout_s,
            self._open_tracing(),
        )
        cards = await self._fleet.start()
        adopt_ready(vllm_config, cards[0].ready)
        self._llm = FleetLLM(vllm_config, self._client, has_metrics=self._metrics.has_vllm)
        app = await build_api(self._llm, make_server_args(self._engine_args, self._api_args))
        REGISTRY.register(self._request_metrics)
        REGISTRY.register(self._fleet_metrics)
        self._metrics_task = asyncio.create_task(self._follow_fleet(), name="fleet metrics")
        self._open_outlet()
        self._is_built = True
        return self._edge.dress(app, self, self._tracing)

    async def stop(self) -> None:
        """Take back what was pushed; the engines see by the closed connections that we are gone."""
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        if self._outlet is not None:
            await asyncio.to_thread(self._outlet.close)

    async def check_health(self) -> None:
        """Raises when this gateway cannot serve; Serve then replaces it."""
        self._fleet.check_alive()
        if not self._is_built:
            return
        if self._metrics_task.done():
            self._metrics_task.result()
        await self._llm.check_health()

    async def check_ready(self) -> None:
        """Raises when no engine would get on with a request: nobody's fault here, so not ill."""
        await self.check_health()
        if self._fleet.num_at_work == 0:
            raise NoEngineLeftError

    @property
    def is_idle(self) -> bool:
        """Whether no request is under way."""
        return self._client is None or self._client.num_open == 0

    async def fairness(self) -> bytes:
        """``GET /v1/fairness`` as JSON."""
        return await self._fleet.snapshot()

    def tools_called(self, tenant: str, conversation: str, tools: list[str]) -> None:
        """A turn of this conversation has ended with calls of these tools."""
        self._fleet.tools_called(tenant, conversation, tools)

    def _open_outlet(self) -> None:
        if self._metrics.outlets.push is None:
            return  # to be scraped there is /metrics
        group = Group("gateway", self._name, application_name())
        outlets = replace(self._metrics.outlets, scrape_port=None)
        self._outlet = Outlet(REGISTRY, outlets, group, host="")
        self._outlet.open()

    def _open_tracing(self) -> "RequestWatch | None":
        if self._tracing_plan is None:
            return None
        from deployments.vllm_traces import FleetTraces
        from ops.tracing.export import Tracing

        self._tracing = Tracing.to_collector(self._tracing_plan, self._name)
        return FleetTraces(self._tracing.tracer, self._engine_args["served_model_name"][0])

    async def _follow_fleet(self) -> None:
        while True:
            snapshot = json.loads(await self._fleet.snapshot())
            self._fleet_metrics.update(snapshot, is_router_up=self._fleet.has_router)
            await asyncio.sleep(FLEET_METRICS_S)
