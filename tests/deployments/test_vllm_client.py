"""The fleet as one engine core: labels, placement, merged outputs, aborts, engines that go."""

import asyncio
import pickle
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.config import ModelConfig, VllmConfig
from vllm.v1.engine import (
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    EngineCoreRequestType,
    FinishReason,
)

from deployments import engine_links, fleet_view, router_link
from deployments.admissions import AdmissionRecord
from deployments.engine_order import DRAINING, PARTING
from deployments.fleet_view import FleetView
from deployments.messages import Admit, Cancel, InLine, OverLimit, Placed, Refused
from deployments.vllm_client import DeniedError, EngineLostError, FleetClient, _tenant_salt
from ops.metrics.request_metrics import RequestMetrics
from ops.metrics.tenant_labels import TenantLabels
from scheduler.admission import PRIORITY_BOUND, AdmitRequest, Wishes
from scheduler.vllm_scheduler import CARRIED_ARG, TENANT_ARG
from tests.deployments.stand_ins import PATIENCE_S, StandInEngine, SteeredRouter, until

CLIENT = 7
MAX_MODEL_LEN = 100
ADD, ABORT = EngineCoreRequestType.ADD.value, EngineCoreRequestType.ABORT.value
encode = msgspec.msgpack.Encoder().encode


@dataclass
class Caller:
    tenant: str = "acme"
    conversation: str | None = None
    wishes: Wishes = field(default_factory=Wishes)
    admission: AdmissionRecord = field(default_factory=AdmissionRecord)


class Gateway:
    """A fleet client over stand-in engines, and what it has said to its frontend."""

    def __init__(
        self, router: SteeredRouter, view: FleetView, continuation_timeout_s: float
    ) -> None:
        self.router, self.view = router, view
        self.caller = Caller()
        self.metrics = RequestMetrics("gateway-7", TenantLabels())
        self.failed: dict[str, Exception] = {}
        self.client = FleetClient(
            make_config(), view, lambda: self.caller, self.metrics, continuation_timeout_s
        )
        self.client.fail_request = self.failed.__setitem__

    async def add(self, request_id: str = "r1", **changes: Any) -> EngineCoreRequest:
        request = make_request(request_id, **changes)
        await self.client.add_request_async(request)
        return request

    async def told(self) -> list[EngineCoreOutput]:
        """What the frontend is given next."""
        return (await asyncio.wait_for(self.client.get_output_async(), PATIENCE_S)).outputs

    def outcomes(self) -> dict[str, float]:
        """How requests ended, by the metrics, and how many have not; ways none did are left out."""
        samples = [sample for metric in self.metrics.collect() for sample in metric.samples]
        ended = {
            sample.labels["outcome"]: sample.value
            for sample in samples
            if sample.name == "fastswitch_requests_total" and sample.value
        }
        [in_flight] = [
            sample.value for sample in samples if sample.name == "fastswitch_requests_in_flight"
        ]
        return ended if not in_flight else {**ended, "in flight": in_flight}

    def moves(self) -> dict[str, float]:
        """How requests went on with other engines, by the metrics; ways none went are left out."""
        samples = [sample for metric in self.metrics.collect() for sample in metric.samples]
        return {
            sample.labels["way"]: sample.value
            for sample in samples
            if sample.name == "fastswitch_moved_requests_total" and sample.value
        }

    def rejections(self) -> dict[tuple[str, str], float]:
        """Refused requests by tenant and limit."""
        return {
            (sample.labels["tenant"], sample.labels["limit"]): sample.value
            for metric in self.metrics.collect()
            for sample in metric.samples
            if sample.name == "fastswitch_rejected_requests_total"
        }


@asynccontextmanager
async def gateway(
    *engines: StandInEngine, continuation_timeout_s: float = PATIENCE_S
) -> AsyncIterator[Gateway]:
    """A gateway that reaches these engines; the router places on the first."""
    with (
        SteeredRouter(*engines) as router,
        closing(FleetView(router.handle, CLIENT, PATIENCE_S)) as view,
    ):
        made = Gateway(router, view, continuation_timeout_s)
        async with asyncio.timeout(PATIENCE_S):
            await view.start()
        await until(lambda: view.num_up == len(engines))
        router.place_on(engines[0].card.engine_id)
        yield made


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_links, "KNOCK_S", 0.002)
    monkeypatch.setattr(engine_links, "HEARTBEAT_S", 0.01)
    monkeypatch.setattr(fleet_view, "DIRECTORY_S", 0.01)
    monkeypatch.setattr(router_link, "PAUSE_S", 0.002)


def make_config() -> VllmConfig:
    """Of a model of ``MAX_MODEL_LEN`` that asks nothing special of its engines."""
    config = VllmConfig()
    model = SimpleNamespace(
        max_model_len=MAX_MODEL_LEN,
        logits_processors=None,
        return_sampling_mask=False,
    )
    config.model_config = cast("ModelConfig", model)
    return config


def make_request(request_id: str = "r1", **changes: Any) -> EngineCoreRequest:
    request = EngineCoreRequest(
        request_id=request_id,
        prompt_token_ids=[1, 2, 3],
        mm_features=None,
        sampling_params=SamplingParams(max_tokens=5),
        pooling_params=None,
        arrival_time=time.time(),
        lora_request=None,
        cache_salt=None,
        data_parallel_rank=None,
    )
    return msgspec.structs.replace(request, **changes)


async def received(engine: StandInEngine) -> tuple[bytes, Any]:
    """The next message's kind and content, the latter as vLLM's engine reads it."""
    kind, *frames = await engine.received()
    if kind == ADD:
        return kind, msgspec.msgpack.decode(frames[0], type=EngineCoreRequest)
    return kind, msgspec.msgpack.decode(frames[0])


def outputs(*request_ids: str, token: int = 42, end: FinishReason | None = None) -> bytes:
    """One step's outputs, a token for each request."""
    made = [EngineCoreOutput(request_id, [token], finish_reason=end) for request_id in request_ids]
    return encode(EngineCoreOutputs(outputs=made))


async def test_a_request_goes_where_the_router_says() -> None:
    """In vLLM's own encoding, with the router's priority and this gateway's index."""
    with StandInEngine("engine-a") as a, StandInEngine("engine-b") as b:
        async with gateway(a, b) as gate:
            gate.router.place_on("engine-b", priority=-4)
            await gate.add("r1")
            kind, request = await received(b)

            assert kind == ADD
            assert (request.request_id, request.prompt_token_ids) == ("r1", [1, 2, 3])
            assert (request.client_index, request.priority) == (CLIENT, -4)
            assert a.num_unread == 0


async def test_the_router_is_told_what_it_needs() -> None:
    """Whose request it is, of which conversation, and how large it may become."""
    with StandInEngine() as engine:
        async with gateway(engine) as gate:
            gate.caller = Caller("acme", "talk-1")
            request = await gate.add("r1")

            [told] = gate.router.asked(Admit)
            assert told == Admit(AdmitRequest("r1", "acme", "talk-1", 3, 5, told.request.arrival_s))
            assert told.request.arrival_s == pytest.approx(request.arrival_time, abs=60.0)
            _, sent = await received(engine)
            assert sent.session_id == "talk-1"


async def test_the_router_is_told_what_the_sender_wishes() -> None:
    """What its headers ask for, and the priority as vLLM read it; the engine gets the router's."""
    with StandInEngine() as engine:
        async with gateway(engine) as gate:
            gate.caller = Caller(wishes=Wishes(service_class="batch", ttft_s=0.5, program="p1"))
            gate.router.place_on("engine-a", priority=7)
            await gate.add("r1", priority=-3)

            [admit] = gate.router.asked(Admit)
            assert admit.request.wishes == Wishes(-3, "batch", 0.5, None, "p1")
            _, sent = await received(engine)
            assert sent.priority == 7


@pytest.mark.parametrize("priority", [PRIORITY_BOUND + 1, -PRIORITY_BOUND - 1, 2**62])
async def test_a_priority_out_of_bounds_is_refused(priority: int) -> None:
    """With 400; nobody is asked, nothing is kept."""
    with StandInEngine() as engine:
        async with gateway(engine) as gate:
            with pytest.raises(DeniedError, match=f"priority {priority} is not allowed"):
                await gate.add("r1", priority=priority)

            denial = gate.caller.admission.denial
            assert denial is not None
            assert (denial.status, denial.is_for_good) == (HTTPStatus.BAD_REQUEST, True)
            assert gate.router.asked(Admit) == []
            assert gate.client.num_open == 0


@pytest.mark.parametrize(("max_tokens", "is_open_ended"), [(96, False), (97, True)])
async def test_a_request_is_open_ended_where_the_models_length_is_its_bound(
    max_tokens: int,
    is_open_ended: bool,  # noqa: FBT001
) -> None:
    """vLLM fills that in where a sender sets no limit of its own."""
    with StandInEngine() as engine:
        async with gateway(engine) as gate:
            await gate.add("r1", sampling_params=SamplingParams(max_tokens=max_tokens))

            [admit] = gate.router.asked(Admit)
            assert admit.request.is_open_ended == is_open_ended


async def test_a_tenant_past_its_limit_is_refused() -> None:
    """With 429, its record says when to come again, no engine hears of it and nothing is kept."""
    with StandInEngine() as engine:
        async with gateway(engine) as gate:
            gate.router.place = lambda _: OverLimit("acme", "max_concurrent", 2, 1, 1.5)
            with pytest.raises(DeniedError, match="tenant acme has reached its max_concurrent"):
                await gate.add("r1")

            denial = gate.caller.admission.denial
            assert denial is not None
            assert (denial.status, denial.retry_after_s) == (HTTPStatus.TOO_MANY_REQUESTS, 1.5)
            assert denial.dropped_reason == "rejected-max-concurrent"
            assert (engine.num_unread, gate.client.num_open) == (0, 0)
            assert gate.outcomes() == {"rejected": 1}
            assert gate.rejections() == {("acme", "max_concurrent"): 1}


async def test_while_the_router_is_away_nobody_is_held_to_a_limit() -> None:
    """Only the router counts; without it requests go on."""
    with StandInEngine() as engine:
        async with gateway(engine) as gate:
            gate.router.place = lambda _: OverLimit("acme", "max_concurrent", 2, 1, 1.5)
            gate.view._router.close()
            await gate.add("r1")

            kind, _ = await received(engine)
            assert kind == ADD
            assert gate.caller.admission.is_decided
            assert gate.caller.admission.denial is None


async def test_an_admission_is_decided_when_every_sequence_has_its_answer() -> None:
    """Of several at once, the first to be placed decides nothing for the others."""
    with StandInEngine() as engine:
        async with gateway(engine) as gate:
            admission = gate.caller.admission
            gate.router.place = lambda admit: (
                Placed("engine-a", 0) if admit.request.request_id == "r1" else None
            )
            assert not admission.is_decided
            waiting = asyncio.create_task(gate.add("r2"))
            await gate.add("r1")
            assert not admission.is_decided

            waiting.cancel()
            await asyncio.wait({waiting})
            assert admission.is_decided
            assert admission.denial is None


async def test_the_engine_learns_the_tenant_from_us_alone() -> None:
    """A client may pass extra arguments; one that names a tenant is overruled, the rest stays."""
    claimed = SamplingParams(extra_args={TENANT_ARG: "somebody-else", "other": 1})
    with StandInEngine() as engine:
        async with gateway(engine) as gate:
            await gate.add("r1", sampling_params=claimed)
            _, sent = await received(engine)
            assert sent.sampling_params.extra_args == {TENANT_ARG: "acme", "other": 1}

            # Else its first tokens would be nobody's.
            await gate.add("r3", sampling_params=SamplingParams(extra_args={CARRIED_ARG: [9, 0]}))
            _, sent = await received(engine)
            assert sent.sampling_params.extra_args == {TENANT_ARG: "acme"}

            await gate.add("r2")
            _, sent = await received(engine)
            assert sent.sampling_params.extra_args == {TENANT_ARG: "acme"}


async def test_tenants_share_no_cache() -> None:
    """Their salts differ, whatever salts their clients send; one tenant's own requests agree."""
    salts: dict[tuple[str, str | None], str] = {}
    with StandInEngine() as engine:
        async with gateway(engine) as gate:
            for tenant in ("acme", "acme-2"):
                for own in (None, "pepper", "-2pepper"):
                    gate.caller = Caller(tenant)
                    for turn in range(2):
                        await gate.add(f"{tenant}{own}{turn}", cache_salt=own)
                        _, sent = await received(engine)
                        assert salts.setdefault((tenant, own), sent.cache_salt) == sent.cache_salt
    assert len(set(salts.values())) == len(salts)


@given(st.text(max_size=40), st.text(max_size=40))
def test_no_salt_of_a_clients_makes_it_another_tenant(one: str, other: str) -> None:
    """A tenant's own salt comes first and is always as long: what follows cannot change whose."""
    salts = _tenant_salt(one), _tenant_salt(other)

    assert (salts[0] == salts[1]) == (one == other)
    assert len(salts[0]) == len(salts[1])


async def test_outputs_of_all_engines_come_in_one_stream() -> None:
    """A message that holds no output is not passed on."""
    with StandInEngine("engine-a") as a, StandInEngine("engine-b") as b:
        async with gateway(a, b) as gate:
            gate.router.place = lambda ask: Placed(f"engine-{ask.request.request_id}", 0)
            await gate.add("a")
            await gate.add("b")
            await a.send(CLIENT, encode(EngineCoreOutputs()))
            for engine, name in ((a, "a"), (b, "b"), (a, "a")):
                await engine.send(CLIENT, outputs(name))
                merged = await asyncio.wait_for(gate.client.get_output_async(), PATIENCE_S)
                assert [output.request_id for output in merged.outputs] == [name]


async def test_a_backlog_of_outputs_leaves_others_their_turn() -> None:
    """However far the frontend is behind, what else is ready runs between two messages."""
    num_turns = 0

    async def take_turns() -> None:
        nonlocal num_turns
        while True:
            num_turns += 1
            await asyncio.sleep(0)

    with StandInEngine() as engine:
        async with gateway(engine) as gate:
            await gate.add("r1")
            for _ in range(20):
                await engine.send(CLIENT, outputs("r1"))
            await until(lambda: gate.client._outputs.qsize() == 20)

            others = asyncio.create_task(take_turns())
            for _ in range(20):
                await gate.client.get_output_async()
            others.cancel()

            assert num_turns >= 20


async def test_a_finished_request_is_let_go() -> None:
    """It counts as ended, for the metrics and for the load of its engine."""
    with StandInEngine() as engine:
        async with gateway(engine) as gate:
            await gate.add("r1")
            await engine.send(CLIENT, outputs("r1"))
            await until(lambda: not gate.client._outputs.empty())
            assert gate.client.num_open == 1

            await engine.send(CLIENT, outputs("r1", end=FinishReason.STOP))
            await until(lambda: gate.client.num_open == 0)
            assert gate.outcomes() == {"stop": 1}


async def test_aborts_go_to_the_engines_that_have_the_requests() -> None:
    """One message each; what is over or never was is nobody's, and a late output does no harm."""
    with StandInEngine("engine-a") as a, StandInEngine("engine-b") as b:
        async with gateway(a, b) as gate:
            gate.router.place = lambda ask: Placed(f"engine-{ask.request.request_id[0]}", 0)
            for name in ("a1", "a2", "b1"):
                await gate.add(name)
            await gate.client.abort_requests_async(["a1", "b1", "a2", "never"])
            await gate.client.abort_requests_async(["a1"])

            assert [(await received(a))[0] for _ in range(2)] == [ADD, ADD]
            assert await received(a) == (ABORT, ["a1", "a2"])
            assert (await received(b))[0] == ADD
            assert await received(b) == (ABORT, ["b1"])
            await a.send(CLIENT, outputs("a1", end=FinishReason.ABORT))
            await asyncio.wait_for(gate.client.get_output_async(), PATIENCE_S)
            assert (gate.client.num_open, a.num_unread) == (0, 0)
            assert gate.outcomes() == {"abort": 3}


async def test_a_client_that_leaves_before_its_request_is_placed_leaves_nothing() -> None:
    """No engine gets it, the router is told, and nothing is kept."""
    with StandInEngine() as engine:
        async with gateway(engine) as gate:
            gate.router.place = lambda _: None
            adding = asyncio.create_task(gate.add("r1"))
            await until(lambda: gate.router.asked(Admit))
            adding.cancel()
            with pytest.raises(asyncio.CancelledError):
                await adding

            await until(lambda: gate.router.asked(Cancel) == [Cancel("r1")])
            assert (gate.client.num_open, engine.num_unread) == (0, 0)
            assert gate.outcomes() == {"abort": 1}


async def test_a_request_aborted_before_it_is_placed_is_not_sent() -> None:
    """The placement that comes after all is taken back."""
    with StandInEngine() as engine:
        async with gateway(engine) as gate:
            held = hold_placement(gate)
            adding = asyncio.create_task(gate.add("r1"))
            await until(lambda: gate.router.asked(Admit))
            await gate.client.abort_requests_async(["r1"])
            held()

            await asyncio.wait_for(adding, PATIENCE_S)
            assert gate.router.asked(Cancel) == [Cancel("r1")]
            assert (gate.client.num_open, engine.num_unread) == (0, 0)


async def test_without_an_engine_a_request_is_refused() -> None:
    """With 503, which tells clients to try again, and nothing is kept."""
    with StandInEngine() as engine:
        async with gateway(engine) as gate:
            engine.close()
            await until(lambda: gate.view.num_up == 0)
            gate.router.place = lambda _: Refused("no engine has joined")
            with pytest.raises(EngineLostError, match="no engine is ready") as caught:
                await gate.add("r1")

            assert caught.value.http_status is HTTPStatus.SERVICE_UNAVAILABLE
            assert gate.client.num_open == 0
            assert gate.outcomes() == {"error": 1}
            denial = gate.caller.admission.denial
            assert denial is not None
            assert (denial.status, denial.dropped_reason) == (503, "rejected-no-endpoints")
            assert denial.retry_after_s is not None


async def test_a_request_that_waits_for_its_place_outlives_the_engines() -> None:
    """One that came while there were engines is served by those that come after them."""
    with StandInEngine("engine-a") as a:
        async with gateway(a) as gate:
            gate.router.place = lambda _: InLine()
            adding = asyncio.create_task(gate.add("r1"))
            await until(lambda: gate.router.asked(Admit))
            a.close()
            await until(lambda: gate.view.num_up == 0)
            gate.router.call_up("r1", "engine-a")
            await until(lambda: gate.router.asked(Cancel))
            assert not adding.done()
            with StandInEngine("engine-b") as b:
                gate.router.place_on("engine-b")
                gate.router.cards = [b.card]
                _, sent = await received(b)

                assert sent.request_id == "r1"
                await adding
                assert gate.outcomes() == {"in flight": 1}


async def test_a_request_that_had_no_output_moves_when_its_engine_is_lost() -> None:
    """The same request goes to another engine, labelled once, and nobody notices."""
    with StandInEngine("engine-a") as a, StandInEngine("engine-b") as b:
        async with gateway(a, b) as gate:
            await gate.add("r1", cache_salt="pepper")
            _, before = await received(a)
            gate.router.place_on("engine-b", priority=3)
            a.close()
            _, after = await received(b)

            assert after == msgspec.structs.replace(before, priority=3)
            assert gate.router.asked(Admit)[-1].avoid == ["engine-a"]
            await b.send(CLIENT, outputs("r1", end=FinishReason.LENGTH))
            await until(lambda: gate.client.num_open == 0)
            assert gate.failed == {}
            assert gate.outcomes() == {"length": 1}


async def test_a_request_may_move_more_than_once() -> None:
    """Each engine that was lost is avoided from then on."""
    with (
        StandInEngine("engine-a") as a,
        StandInEngine("engine-b") as b,
        StandInEngine("engine-c") as c,
    ):
        async with gateway(a, b, c) as gate:
            await gate.add("r1")
            for engine, following in ((a, b), (b, c)):
                await received(engine)
                gate.router.place_on(following.card.engine_id)
                engine.close()
            await received(c)
            assert gate.router.asked(Admit)[-1].avoid == ["engine-a", "engine-b"]


async def test_a_request_goes_back_to_an_engine_that_was_only_out_of_reach(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Once its second engine is lost as well: it does not wait for a third."""
    monkeypatch.setattr(fleet_view, "BACK_AFTER_S", -1.0)
    with StandInEngine("engine-a") as a, StandInEngine("engine-b") as b:
        async with gateway(a, b) as gate:
            await gate.add("r1")
            await received(a)
            gate.router.place_on("engine-b")
            gate.view._engine_lost("engine-a")
            await received(b)
            await until(lambda: gate.view.num_up == 2)

            gate.router.place_on("engine-a")
            b.close()
            await received(a)
            assert gate.router.asked(Admit)[-1].avoid == ["engine-b"]
            assert gate.failed == {}


async def test_a_request_with_output_continues_when_its_engine_is_lost() -> None:
    """What is out is the end of the new prompt, and the router is told that it is done."""
    with StandInEngine("engine-a") as a, StandInEngine("engine-b") as b:
        async with gateway(a, b) as gate:
            await gate.add("r1")
            _, before = await received(a)
            for token in (10, 11):
                await a.send(CLIENT, outputs("r1", token=token))
                await gate.told()
            gate.router.place_on("engine-b", priority=3)
            a.close()
            _, after = await received(b)

            assert after.prompt_token_ids == [1, 2, 3, 10, 11]
            assert (before.sampling_params.max_tokens, after.sampling_params.max_tokens) == (5, 3)
            assert after.sampling_params.extra_args == {TENANT_ARG: "acme", CARRIED_ARG: [2, 2]}
            assert (after.priority, after.cache_salt) == (3, before.cache_salt)
            first, again = gate.router.asked(Admit)
            assert again.request == msgspec.structs.replace(first.request, output_done=2)
            await b.send(CLIENT, outputs("r1", token=12, end=FinishReason.LENGTH))
            [output] = await gate.told()
            assert (output.new_token_ids, output.finish_reason) == ([12], FinishReason.LENGTH)
            assert (gate.failed, gate.outcomes()) == ({}, {"length": 1})


async def test_a_request_may_continue_more_than_once() -> None:
    """From all that is out, whichever engine said it."""
    with (
        StandInEngine("engine-a") as a,
        StandInEngine("engine-b") as b,
        StandInEngine("engine-c") as c,
    ):
        async with gateway(a, b, c) as gate:
            await gate.add("r1")
            for token, (engine, following) in enumerate(((a, b), (b, c)), 10):
                await received(engine)
                await engine.send(CLIENT, outputs("r1", token=token))
                await gate.told()
                gate.router.place_on(following.card.engine_id)
                engine.close()
            _, sent = await received(c)

            assert sent.prompt_token_ids == [1, 2, 3, 10, 11]
            assert sent.sampling_params.max_tokens == 3
            assert gate.router.asked(Admit)[-1].request.output_done == 2
            assert gate.moves() == {"continued": 2}


async def test_a_request_goes_on_elsewhere_before_its_engine_ends() -> None:
    """Of an engine that parts with it: it is aborted there, and what still comes of it is dropped.

    The engine says so again and again; once moved, a request stays where it is.
    """
    with StandInEngine("engine-a") as a, StandInEngine("engine-b") as b:
        async with gateway(a, b) as gate:
            await gate.add("r1")
            await received(a)
            await a.send(CLIENT, outputs("r1", token=10))
            await gate.told()
            gate.router.place_on("engine-b")

            a.stage = PARTING
            _, after = await received(b)
            assert await received(a) == (ABORT, ["r1"])

            assert after.prompt_token_ids == [1, 2, 3, 10]
            await a.send(CLIENT, outputs("r1", token=99))
            await a.send(CLIENT, outputs("r1", token=98, end=FinishReason.ABORT))
            await b.send(CLIENT, outputs("r1", token=11, end=FinishReason.LENGTH))
            [output] = await gate.told()
            assert (output.new_token_ids, output.finish_reason) == ([11], FinishReason.LENGTH)
            a.close()
            await until(lambda: gate.view.num_up == 1)
            assert (gate.failed, gate.outcomes()) == ({}, {"length": 1})
            assert (a.num_unread, b.num_unread) == (0, 0)
            assert gate.view._num_open["engine-b"] == 0


async def test_what_cannot_go_on_stays_until_its_engine_ends() -> None:
    """It may be done by then; else its client is told to send it again."""
    with StandInEngine("engine-a") as a, StandInEngine("engine-b") as b:
        async with gateway(a, b) as gate:
            for name in ("r1", "r2"):
                await gate.add(name, resumable=True)
                await a.send(CLIENT, outputs(name, token=10))
                await gate.told()
            gate.router.place_on("engine-b")
            await gate.add("r3")
            await received(b)

            a.stage = PARTING
            await until(lambda: not a_takes(gate))
            await a.send(CLIENT, outputs("r1", token=11, end=FinishReason.LENGTH))
            [output] = await gate.told()
            assert (output.request_id, output.new_token_ids) == ("r1", [11])
            a.close()
            await until(lambda: gate.failed)

            assert list(gate.failed) == ["r2"]
            assert b.num_unread == 0


async def test_while_engines_drain_new_requests_wait_for_the_next() -> None:
    """None is refused as long as an engine is there to be replaced."""
    with StandInEngine("engine-a") as a, StandInEngine("engine-b") as b:
        async with gateway(a) as gate:
            a.stage = DRAINING
            await until(lambda: not a_takes(gate))
            adding = asyncio.create_task(gate.add("r1"))
            await until(lambda: gate.router.asked(Cancel))
            assert not adding.done()

            gate.router.cards.append(b.card)
            gate.router.place_on("engine-b")
            await adding
            assert (await received(b))[0] == ADD


def a_takes(gate: Gateway) -> bool:
    link = gate.view.link("engine-a")
    return link is not None and link.takes_requests


async def test_what_tokens_cannot_tell_is_replayed() -> None:
    """The same request, whose first tokens are kept back and whose other ones go on."""
    with StandInEngine("engine-a") as a, StandInEngine("engine-b") as b:
        async with gateway(a, b) as gate:
            await gate.add("r1", sampling_params=SamplingParams(max_tokens=5, seed=1))
            _, before = await received(a)
            for token in (10, 11):
                await a.send(CLIENT, outputs("r1", token=token))
                await gate.told()
            gate.router.place_on("engine-b")
            a.close()
            _, after = await received(b)

            assert after.prompt_token_ids == before.prompt_token_ids
            assert after.sampling_params.max_tokens == 5
            assert after.sampling_params.extra_args == {TENANT_ARG: "acme", CARRIED_ARG: [2, 0]}
            for token in (10, 11, 12):
                await b.send(CLIENT, outputs("r1", token=token))
            assert [output.new_token_ids for output in await gate.told()] == [[12]]
            assert gate.moves() == {"replayed": 1}


async def test_a_request_that_may_be_replayed_is_sampled_with_a_seed() -> None:
    """Of the gateway's, where it has none: the next engine shall draw the same."""
    penalized = SamplingParams(max_tokens=5, presence_penalty=0.5)
    with StandInEngine("engine-a") as a, StandInEngine("engine-b") as b:
        async with gateway(a, b) as gate:
            await gate.add("r1", sampling_params=penalized)
            _, before = await received(a)
            await a.send(CLIENT, outputs("r1"))
            await gate.told()
            gate.router.place_on("engine-b")
            a.close()
            _, after = await received(b)

            assert before.sampling_params.seed is not None
            assert after.sampling_params.seed == before.sampling_params.seed


async def test_a_replay_that_differs_ends_with_an_error() -> None:
    """What was sent cannot be unsaid; the engine is told to stop."""
    with StandInEngine("engine-a") as a, StandInEngine("engine-b") as b:
        async with gateway(a, b) as gate:
            await gate.add("r1", sampling_params=SamplingParams(max_tokens=5, seed=1))
            await a.send(CLIENT, outputs("r1", token=10))
            await gate.told()
            gate.router.place_on("engine-b")
            a.close()
            await received(b)
            await b.send(CLIENT, outputs("r1", token=11))

            assert await received(b) == (ABORT, ["r1"])
            assert isinstance(gate.failed["r1"], EngineLostError)
            assert str(gate.failed["r1"]) == (
                "engine-a, which was serving this request, stopped, and its answer could not be "
                "repeated elsewhere (token 0 of the 1 to be repeated came out different); "
                "please send it again"
            )
            assert (gate.client.num_open, gate.outcomes()) == (0, {"error": 1})


async def test_a_replay_that_its_engine_gives_up_ends_as_that_engine_says() -> None:
    """An abort or an error of the engine's own is no difference in the answer."""
    with StandInEngine("engine-a") as a, StandInEngine("engine-b") as b:
        async with gateway(a, b) as gate:
            await gate.add("r1", sampling_params=SamplingParams(max_tokens=5, seed=1))
            await a.send(CLIENT, outputs("r1", token=10))
            await gate.told()
            gate.router.place_on("engine-b")
            a.close()
            await received(b)
            given_up = EngineCoreOutput("r1", [], finish_reason=FinishReason.ABORT)
            await b.send(CLIENT, encode(EngineCoreOutputs(outputs=[given_up])))

            [output] = await gate.told()
            assert output.finish_reason is FinishReason.ABORT
            assert gate.failed == {}


async def test_what_can_go_on_in_no_way_ends_with_an_error() -> None:
    """One that names the engine, and trying again may help; without output it would have moved."""
    with StandInEngine("engine-a") as a, StandInEngine("engine-b") as b:
        async with gateway(a, b) as gate:
            await gate.add("r1", resumable=True)
            await a.send(CLIENT, outputs("r1"))
            await gate.told()
            a.close()
            await until(lambda: gate.failed)

            assert isinstance(gate.failed["r1"], EngineLostError)
            assert "engine-a, which was serving this request, stopped" in str(gate.failed["r1"])
            assert (gate.client.num_open, b.num_unread) == (0, 0)
            assert gate.outcomes() == {"error": 1}


async def test_an_engine_that_was_given_up_is_not_listened_to() -> None:
    """What it still says of a request that another one has is not the request's answer."""
    with StandInEngine("engine-a") as a, StandInEngine("engine-b") as b:
        async with gateway(a, b) as gate:
            await gate.add("r1")
            await b.send(CLIENT, outputs("r1", token=13))
            await a.send(CLIENT, outputs("r1", token=10))
            assert [output.new_token_ids for output in await gate.told()] == [[10]]

            gate.router.place_on("engine-b")
            a.close()
            await received(b)
            await b.send(CLIENT, outputs("r1", token=11))
            assert [output.new_token_ids for output in await gate.told()] == [[11]]


async def test_a_request_waits_for_an_engine_where_none_is_left() -> None:
    """Serve starts another within seconds, which then gets it as it stands."""
    with StandInEngine("engine-a") as a:
        async with gateway(a) as gate:
            await gate.add("r1")
            await a.send(CLIENT, outputs("r1", token=10))
            await gate.told()
            gate.router.place = lambda _: Refused("all are to be avoided")
            a.close()
            await until(lambda: len(gate.router.asked(Admit)) == 2)
            with StandInEngine("engine-b") as b:
                gate.router.place_on("engine-b")
                gate.router.cards = [b.card]
                _, sent = await received(b)

                assert sent.prompt_token_ids == [1, 2, 3, 10]
                assert (gate.failed, gate.outcomes()) == ({}, {"in flight": 1})


@pytest.mark.parametrize("num_out", [0, 1])
async def test_a_request_that_waits_in_vain_for_an_engine_fails(num_out: int) -> None:
    """After a bounded time: with the last engine goes every request."""
    with StandInEngine() as engine:
        async with gateway(engine, continuation_timeout_s=0.05) as gate:
            await gate.add("r1")
            for _ in range(num_out):
                await engine.send(CLIENT, outputs("r1"))
                await gate.told()
            gate.router.place = lambda _: Refused("all are to be avoided")
            engine.close()
            await until(lambda: gate.failed)

            assert isinstance(gate.failed["r1"], EngineLostError)
            assert "no other engine was ready within 0.05 s" in str(gate.failed["r1"])
            assert gate.outcomes() == {"error": 1}


async def test_a_client_that_leaves_while_its_request_waits_for_an_engine_is_not_told() -> None:
    """Its request ends as aborted, and no engine is bothered with it."""
    with StandInEngine("engine-a") as a:
        async with gateway(a) as gate:
            await gate.add("r1")
            gate.router.place = lambda _: Refused("all are to be avoided")
            a.close()
            await until(lambda: len(gate.router.asked(Admit)) == 2)
            await gate.client.abort_requests_async(["r1"])
            with StandInEngine("engine-b") as b:
                gate.router.place_on("engine-b")
                gate.router.cards = [b.card]
                await until(lambda: not gate.client._tasks)

                assert (gate.failed, gate.outcomes()) == ({}, {"abort": 1})
                assert b.num_unread == 0


async def test_a_move_that_breaks_ends_its_request() -> None:
    """Whatever the reason: nobody else would ever end it."""
    with StandInEngine("engine-a") as a, StandInEngine("engine-b") as b:
        async with gateway(a, b) as gate:
            await gate.add("r1")

            async def place(admit: Admit, _in_line: object) -> Any:
                raise ZeroDivisionError(admit)

            gate.view.place = place  # type: ignore[method-assign, assignment]
            a.close()
            await until(lambda: gate.failed)
            assert "could not be sent to another engine" in str(gate.failed["r1"])
            assert gate.outcomes() == {"error": 1}


async def test_a_request_aborted_while_it_moves_is_not_sent() -> None:
    """No engine works for a client that has left."""
    with StandInEngine("engine-a") as a, StandInEngine("engine-b") as b:
        async with gateway(a, b) as gate:
            await gate.add("r1")
            held = hold_placement(gate, "engine-b")
            a.close()
            await until(lambda: len(gate.router.asked(Admit)) == 2)
            await gate.client.abort_requests_async(["r1"])
            held()
            await until(lambda: gate.router.asked(Cancel))

            assert (gate.client.num_open, b.num_unread, gate.failed) == (0, 0, {})
            assert gate.outcomes() == {"abort": 1}


async def test_other_engines_requests_are_left_alone_when_one_is_lost() -> None:
    """They go on where they are."""
    with StandInEngine("engine-a") as a, StandInEngine("engine-b") as b:
        async with gateway(a, b) as gate:
            gate.router.place = lambda ask: Placed(f"engine-{ask.request.request_id}", 0)
            await gate.add("b")
            await b.send(CLIENT, outputs("b"))
            await asyncio.wait_for(gate.client.get_output_async(), PATIENCE_S)
            a.close()
            await until(lambda: gate.view.num_up == 1)

            await b.send(CLIENT, outputs("b", end=FinishReason.STOP))
            await until(lambda: gate.client.num_open == 0)
            assert gate.failed == {}


def test_a_denial_is_an_error_that_crosses_processes() -> None:
    """Its message and status survive pickling."""
    error = DeniedError("too much", HTTPStatus.TOO_MANY_REQUESTS)
    received_error = pickle.loads(pickle.dumps(error))  # noqa: S301 - our own bytes
    assert (str(received_error), received_error.http_status) == ("too much", 429)


def test_an_engine_that_is_lost_is_an_error_that_crosses_processes() -> None:
    """Whole, like all of ours."""
    received_error = pickle.loads(pickle.dumps(EngineLostError("gone")))  # noqa: S301 - our bytes
    assert (str(received_error), received_error.http_status) == ("gone", 503)


def hold_placement(gate: Gateway, engine_id: str = "engine-a") -> Callable[[], None]:
    """From now on the router thinks about placements, until the function returned is called."""
    place, decided = gate.view.place, asyncio.Event()

    async def place_later(admit: Admit, _in_line: object) -> Any:
        gate.router.place_on(engine_id)
        placed = await place(admit)
        await decided.wait()
        return placed

    gate.view.place = place_later  # type: ignore[method-assign, assignment]
    return decided.set
