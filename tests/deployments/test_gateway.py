"""One gateway from its start: it joins the fleet, serves vLLM's API, and says how it is."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx2
import msgspec
import pytest
from prometheus_client import REGISTRY
from vllm.v1.engine import (
    EngineCoreEvent,
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreReadyResponse,
    EngineCoreRequest,
    FinishReason,
)

from app.edge.dress import HttpEdge
from app.engine_settings import engine_args
from app.settings import AppArgs, TenantSettings
from app.tenants import open_directory
from deployments import engine_links, fleet_view, gateway
from deployments.errors import NoEngineLeftError
from deployments.gateway import Gateway
from ops.metrics.outlet import Outlets
from ops.metrics.plan import PLAIN_PLAN, MetricsPlan
from ops.metrics.push import PushTarget
from ops.tracing import export
from ops.tracing.plan import TracingPlan
from tests.deployments.stand_ins import PATIENCE_S, StandInEngine, SteeredRouter, until
from tests.ops.metrics.stand_in_pushgateway import stand_in_pushgateway
from tests.ops.tracing.stand_in_collector import stand_in_collector

READY = msgspec.msgpack.encode(
    EngineCoreReadyResponse(
        max_model_len=512,
        num_gpu_blocks=100,
        block_size=128,
        dp_stats_address=None,
        dtype="float32",
        vllm_version="0.32.0",
        world_size=1,
        data_parallel_size=1,
        tensor_parallel_size=1,
        pipeline_parallel_size=1,
        decode_context_parallel_size=1,
        data_parallel_rank=0,
        max_num_seqs=4,
        max_num_batched_tokens=512,
        instance_id="stand-in",
        supports_lora=False,
        max_loras=0,
    )
)


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_links, "KNOCK_S", 0.002)
    monkeypatch.setattr(fleet_view, "DIRECTORY_S", 0.01)
    monkeypatch.setattr(gateway, "FLEET_METRICS_S", 0.01)


@pytest.fixture
def new_gateway(engine_settings: AppArgs) -> Any:
    """A gateway, built or not; in the end it holds no task, no socket and no metric any more."""

    @asynccontextmanager
    async def make(
        router: SteeredRouter,
        metrics: MetricsPlan = PLAIN_PLAN,
        tracing: TracingPlan | None = None,
    ) -> AsyncIterator[Gateway]:
        made = Gateway(
            router=router.handle,
            engine_args=engine_args(engine_settings, engine_settings.model, on_cuda=False),
            api_args={},
            edge=HttpEdge(partial(open_directory, None, {"acme": TenantSettings()}), 2**20),
            admit_timeout_s=PATIENCE_S,
            continuation_timeout_s=PATIENCE_S,
            metrics=metrics,
            tracing=tracing,
        )
        try:
            yield made
        finally:
            await made.stop()
            made._fleet.close()
            if hasattr(made, "_metrics_task"):
                made._metrics_task.cancel()
                made._llm.shutdown()
                REGISTRY.unregister(made._request_metrics)
                REGISTRY.unregister(made._fleet_metrics)

    return make


def stand_in() -> StandInEngine:
    engine = StandInEngine("engine-a")
    engine.card = msgspec.structs.replace(engine.card, ready=READY)
    return engine


def client_of(app: Any) -> httpx2.AsyncClient:
    transport = httpx2.ASGITransport(app)
    return httpx2.AsyncClient(transport=transport, base_url="http://gateway")


async def test_a_gateway_waits_for_the_first_engine(new_gateway: Any) -> None:
    """Then it serves, with the engine's own limits."""
    with stand_in() as engine, SteeredRouter() as router:
        async with new_gateway(router) as made:
            building = asyncio.create_task(made.build())
            await until(lambda: router.requests)
            assert not building.done()
            await made.check_health()

            router.cards.append(engine.card)
            app = await asyncio.wait_for(building, PATIENCE_S)
            async with client_of(app) as client:
                [model] = (await client.get("/v1/models")).json()["data"]
                assert model["max_model_len"] == 512
                assert (await client.get("/health")).status_code == 200


async def test_a_gateway_without_engines_is_not_ready_but_not_ill(new_gateway: Any) -> None:
    """Load balancers go elsewhere; Serve leaves it alone, for a new one would do no better."""
    with stand_in() as engine, SteeredRouter(engine) as router:
        async with new_gateway(router) as made:
            app = await made.build()
            await made.check_ready()
            engine.close()
            with pytest.raises(NoEngineLeftError):
                await asyncio.wait_for(_until_raises(made.check_ready), PATIENCE_S)

            await made.check_health()
            async with client_of(app) as client:
                answer = await client.get("/health")
                assert answer.status_code == 503
                assert "no engine is ready" in answer.json()["reason"]
                assert answer.headers["retry-after"]


async def test_a_gateway_with_a_dead_task_is_ill(new_gateway: Any) -> None:
    """Whatever it was that died: its reason is the health check's."""
    with stand_in() as engine, SteeredRouter(engine) as router:
        async with new_gateway(router) as made:
            await made.build()
            router.body = b"this is no JSON"
            with pytest.raises(json.JSONDecodeError):
                await asyncio.wait_for(_until_raises(made.check_health), PATIENCE_S)


async def test_fairness_is_the_routers_word(new_gateway: Any) -> None:
    """Passed on as it comes."""
    with stand_in() as engine, SteeredRouter(engine) as router:
        async with new_gateway(router) as made:
            app = await made.build()
            router.body = b'{"tenants": {}, "engines": {}, "totals": {}}'
            async with client_of(app) as client:
                answer = await client.get("/v1/fairness")
                assert answer.content == router.body


async def test_a_gateway_pushes_what_it_would_show(
    new_gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fleet's numbers, vLLM's half and its own, until it stops."""
    monkeypatch.setattr(gateway, "application_name", lambda: "fastswitch")
    with stand_in_pushgateway() as pushed_to, stand_in() as engine, SteeredRouter(engine) as router:
        plan = MetricsPlan(Outlets(PushTarget(pushed_to.url, every_s=0.01)), has_vllm=True)
        async with new_gateway(router, plan) as made:
            await made.build()
            pushed = await asyncio.to_thread(pushed_to.call_with, "fastswitch_router_up 1.0")
            assert "vllm:e2e_request_latency_seconds" in pushed.body
            assert "vllm:num_requests_running" not in pushed.body  # an engine's to tell

        assert pushed.path.startswith(
            "/metrics/job/gateway/application/fastswitch/instance/gateway-"
        )
        assert pushed_to.call_with("", method="DELETE").path == pushed.path


async def test_a_traced_gateway_tells_a_collector_of_its_requests(
    new_gateway: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the client's trace to the engine's word, in one trace; and nothing of others."""
    monkeypatch.setattr(export, "BATCH_S", 0.01)
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    with stand_in_collector() as collector, stand_in() as engine, SteeredRouter(engine) as router:
        router.place_on("engine-a")
        async with (
            new_gateway(router, tracing=TracingPlan(collector.url, 0.0)) as made,
            client_of(await made.build()) as client,
        ):
            asked = {"prompt": [1, 2, 3], "max_tokens": 1, "model": "tiny"}
            header = {"traceparent": f"00-{trace_id}-b7ad6b7169203331-01"}
            asking = asyncio.create_task(client.post("/v1/completions", json=asked, headers=header))
            _, frame, *_ = await engine.received()
            request = msgspec.msgpack.decode(frame, type=EngineCoreRequest)
            queued = EngineCoreEvent.new_event(EngineCoreEventType.QUEUED)
            last = EngineCoreOutput(
                request.request_id, [5], finish_reason=FinishReason.LENGTH, events=[queued]
            )
            outputs = EngineCoreOutputs(outputs=[last])
            await engine.send(made._client_index, msgspec.msgpack.encode(outputs))
            assert (await asking).status_code == 200

            names: set[str] = set()
            while "POST /v1/completions" not in names:
                _, sent = await asyncio.to_thread(collector.next_call)
                [batch] = sent.resource_spans
                spans = batch.scope_spans[0].spans
                names |= {span.name for span in spans}
                assert {span.trace_id.hex() for span in spans} == {trace_id}

    assert request.trace_headers is None
    assert {"generate", "prepare", "place", "wait for first token", "engine queued"} <= names


async def _until_raises(check: Any) -> None:
    while True:
        await check()
        await asyncio.sleep(0.002)
