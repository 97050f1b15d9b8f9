"""A gateway's traces: its requests and what stand-in engines say of them."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from vllm import SamplingParams
from vllm.config import ModelConfig, VllmConfig
from vllm.v1.engine import (
    EngineCoreEvent,
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
)

from deployments import engine_links, fleet_view
from deployments.admissions import AdmissionRecord
from deployments.fleet_view import FleetView
from deployments.messages import Admit, InLine, OverLimit, Refused
from deployments.vllm_client import DeniedError, FleetClient
from deployments.vllm_traces import FleetTraces
from ops.metrics.request_metrics import RequestMetrics
from ops.metrics.tenant_labels import TenantLabels
from ops.tracing import names
from ops.tracing.http_trace import http_request
from ops.tracing.names import EngineState, Phase, PlacingNote
from scheduler.admission import Wishes
from tests.deployments.stand_ins import PATIENCE_S, StandInEngine, SteeredRouter, until
from tests.ops.tracing.recorded import Recorded, is_child, lasted_s

CLIENT = 7
QUEUED, SCHEDULED, PREEMPTED = (
    EngineCoreEventType.QUEUED,
    EngineCoreEventType.SCHEDULED,
    EngineCoreEventType.PREEMPTED,
)
AHEAD_S = 1e6  # of our clock is the engines', as if their machine had been started long before
encode = msgspec.msgpack.Encoder().encode


class Clock:
    """Our monotonic clock and the wall's, which go alike."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def monotonic(self) -> float:
        return self.now_s

    def wall_ns(self) -> int:
        return round(self.now_s * 1e9)


class Gateway:
    """A fleet client that traces what is sent through it, on a clock that a test sets."""

    def __init__(self, router: SteeredRouter, view: FleetView, sample_share: float) -> None:
        self.router, self.view = router, view
        self.recorded = Recorded(sample_share)
        self.clock = Clock()
        self.admission = AdmissionRecord()
        self.traces = FleetTraces(
            self.recorded.tracer, "demo", self.clock.monotonic, self.clock.wall_ns
        )
        config = VllmConfig()
        model = SimpleNamespace(
            max_model_len=100, logits_processors=None, return_sampling_mask=False
        )
        config.model_config = cast("ModelConfig", model)
        self.client = FleetClient(
            config, view, self._caller, RequestMetrics("gateway", TenantLabels()),
            PATIENCE_S, self.traces,
        )  # fmt: skip
        self.client.fail_request = lambda *_: None

    def _caller(self) -> Any:
        return SimpleNamespace(
            tenant="acme", conversation="talk-1", wishes=Wishes(), admission=self.admission
        )

    async def add(self, request_id: str = "r1") -> None:
        """Send a request, as the app does: within the HTTP request's span."""
        params = SamplingParams(max_tokens=5, temperature=0.5, top_p=0.25)
        request = EngineCoreRequest(
            request_id, [1, 2, 3], None, params, None, arrival_time=0.0, lora_request=None,
            cache_salt=None, data_parallel_rank=None,
        )  # fmt: skip
        with http_request(self.recorded.tracer, "/v1/completions", {}, {}):
            await self.client.add_request_async(request)

    def hear(self, engine_id: str, at_s: float, *outputs: EngineCoreOutput) -> None:
        """A step's message of the engine, sent and here ``at_s``."""
        self.clock.now_s = at_s
        message = EngineCoreOutputs(outputs=list(outputs), timestamp=at_s + AHEAD_S)
        self.traces.heard(engine_id, message, at_s)

    @property
    def whole(self) -> ReadableSpan:
        return self.recorded.one(names.GENERATE)


@asynccontextmanager
async def gateway(*engines: StandInEngine, sample_share: float = 1.0) -> AsyncIterator[Gateway]:
    """A gateway that reaches these engines; the router places on the first."""
    with (
        SteeredRouter(*engines) as router,
        closing(FleetView(router.handle, CLIENT, PATIENCE_S)) as view,
    ):
        made = Gateway(router, view, sample_share)
        await view.start()
        await until(lambda: view.num_up == len(engines))
        router.place_on(engines[0].card.engine_id, priority=-4)
        yield made


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_links, "KNOCK_S", 0.002)
    monkeypatch.setattr(fleet_view, "DIRECTORY_S", 0.01)


def output(*events: tuple[EngineCoreEventType, float], num_tokens: int = 1) -> EngineCoreOutput:
    """Tokens of r1, and what has happened to it, by our clock."""
    told = [EngineCoreEvent(kind, at_s + AHEAD_S) for kind, at_s in events]
    return EngineCoreOutput("r1", [42] * num_tokens, events=told or None)


def seconds(spans: list[ReadableSpan]) -> list[float]:
    return [round(lasted_s(span), 6) for span in spans]


async def test_a_request_is_told_from_its_gateway_and_its_engine() -> None:
    """On one clock, though each has its own: how long it waited, ran, and was switched out."""
    with StandInEngine() as engine:
        async with gateway(engine) as gate:
            await gate.add()
            gate.hear("engine-a", 1.0)  # others' tokens
            gate.hear("engine-a", 4.0, output((QUEUED, 1.0), (SCHEDULED, 2.0)))
            gate.hear("engine-a", 9.0, output((PREEMPTED, 5.0), (SCHEDULED, 8.0), num_tokens=2))
            gate.clock.now_s = 10.0
            gate.traces.finished("r1", "length", 3)

            recorded = gate.recorded
            assert seconds(recorded.named(Phase.DECODE)) == [6.0]
            assert seconds(recorded.named(EngineState.QUEUED)) == [1.0]
            assert seconds(recorded.named(EngineState.RUNNING)) == [3.0, 2.0]
            assert seconds(recorded.named(EngineState.SWITCHED_OUT)) == [3.0]
            assert is_child(gate.whole, recorded.one("POST /v1/completions"))
            assert dict(gate.whole.attributes or {}) == {
                names.REQUEST: "r1",
                names.TENANT: "acme",
                names.CONVERSATION: "talk-1",
                names.MODEL: "demo",
                names.INPUT_TOKENS: 3,
                names.MAX_TOKENS: 5,
                names.TEMPERATURE: 0.5,
                names.TOP_P: 0.25,
                names.ENGINE: "engine-a",
                names.PRIORITY: -4,
                names.OUTPUT_TOKENS: 3,
                names.FINISH_REASONS: ("length",),
                names.NUM_SWITCHES: 1,
                names.SWITCHED_OUT_S: 3.0,
            }


async def test_an_engines_message_ends_the_trace_with_all_it_says() -> None:
    """The last message's tokens count: the wire's way from a real socket to the span."""
    with StandInEngine() as engine:
        async with gateway(engine) as gate:
            await gate.add()
            last = msgspec.structs.replace(
                output((QUEUED, 0.0), (SCHEDULED, 0.0), num_tokens=2),
                finish_reason=FinishReason.STOP,
            )
            await engine.send(CLIENT, encode(EngineCoreOutputs(outputs=[last])))
            await gate.client.get_output_async()

            attributes = gate.whole.attributes or {}
            assert attributes[names.FINISH_REASONS] == ("stop",)
            assert attributes[names.OUTPUT_TOKENS] == 2
            assert len(gate.recorded.named(EngineState.RUNNING)) == 1


async def test_a_request_that_waited_in_line_says_why() -> None:
    """The router had no room for it; its place came later."""
    with StandInEngine() as engine:
        async with gateway(engine) as gate:
            gate.router.place = lambda _: InLine()
            adding = asyncio.create_task(gate.add())
            await until(lambda: gate.router.asked(Admit))
            gate.router.call_up("r1", "engine-a", 3)
            await adding
            await gate.client.abort_requests_async(["r1"])

            [note] = gate.recorded.one(Phase.PLACE).events
            assert note.name == PlacingNote.IN_LINE
            assert (gate.whole.attributes or {})[names.PRIORITY] == 3
            assert (gate.whole.attributes or {})[names.FINISH_REASONS] == ("abort",)


async def test_a_gateway_that_goes_alone_says_why() -> None:
    """The router is away, or names nobody."""
    with StandInEngine() as engine:
        async with gateway(engine) as gate:
            gate.router.place = lambda _: Refused("nobody has joined")
            await gate.add("r1")
            gate.view._admit_timeout_s = 0.01
            gate.router.is_away = True
            await gate.add("r2")
            await gate.client.abort_requests_async(["r1", "r2"])

            notes = [
                event.name for span in gate.recorded.named(Phase.PLACE) for event in span.events
            ]
            assert notes == [PlacingNote.NO_CHOICE, PlacingNote.ROUTER_AWAY]


async def test_a_request_past_a_limit_ends_where_it_looked_for_a_place() -> None:
    """Rejected, with no engine."""
    with StandInEngine() as engine:
        async with gateway(engine) as gate:
            gate.router.place = lambda _: OverLimit("acme", "max_concurrent", 2, 1, 1.5)
            with pytest.raises(DeniedError):
                await gate.add()

            assert (gate.whole.attributes or {})[names.FINISH_REASONS] == ("rejected",)
            assert gate.recorded.named(Phase.WAIT) == []


async def test_a_request_whose_engine_is_lost_goes_on_in_the_same_trace() -> None:
    """It looks for a place again; what the lost engine may still say no longer counts."""
    with StandInEngine("engine-a") as a, StandInEngine("engine-b") as b:
        async with gateway(a, b) as gate:
            await gate.add()
            gate.router.place_on("engine-b")
            a.close()
            await b.received()
            gate.hear("engine-a", 1.0, output())
            gate.hear("engine-b", 2.0, output((QUEUED, 1.5), (SCHEDULED, 1.6)))
            await gate.client.abort_requests_async(["r1"])

            [lost] = gate.whole.events
            assert lost.name == names.ENGINE_LOST
            assert len(gate.recorded.named(Phase.PLACE)) == 2
            assert [span.start_time for span in gate.recorded.named(Phase.DECODE)] == [2 * 10**9]
            assert (gate.whole.attributes or {})[names.ENGINE] == "engine-b"


async def test_a_request_that_is_not_sampled_is_not_followed() -> None:
    """It leaves nothing behind, and costs nothing on the way."""
    with StandInEngine() as engine:
        async with gateway(engine, sample_share=0.0) as gate:
            await gate.add()
            assert gate.traces._traces == {}
            gate.hear("engine-a", 1.0, output((QUEUED, 0.5)))
            await gate.client.abort_requests_async(["r1"])
            assert gate.recorded.spans == []


async def test_nothing_is_kept_of_what_is_over() -> None:
    """Neither of requests nor of engines."""
    with StandInEngine() as engine:
        async with gateway(engine) as gate:
            await gate.add()
            gate.hear("engine-a", 1.0, output())
            engine.close()
            await until(lambda: not gate.view.num_up)
            await gate.client.abort_requests_async(["r1"])
            assert (gate.traces._traces, gate.traces._engine_clocks) == ({}, {})
