"""vLLM's own frontend over the fleet: streams, clients that leave, engines that go, the API."""

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager, closing
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import httpx2
import msgspec
import pytest
from starlette.types import ASGIApp
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.exceptions import QueueOverflowError
from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
from vllm.v1.engine import (
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    EngineCoreRequestType,
)

from app.edge.dress import HttpEdge
from app.engine_settings import engine_args
from app.settings import AppArgs
from app.tenants import open_directory
from deployments import engine_links, fleet_view, router_link
from deployments.admissions import AdmissionRecord
from deployments.fleet_view import FleetView
from deployments.messages import Admit, EngineCard, OverLimit, Placed, Refused
from deployments.vllm_client import EngineLostError, FleetClient
from deployments.vllm_engine import make_engine_args
from deployments.vllm_frontend import (
    SERVED_ROUTES,
    FleetLLM,
    adopt_ready,
    build_api,
    make_server_args,
)
from ops.metrics.request_metrics import RequestMetrics
from ops.metrics.tenant_labels import TenantLabels
from scheduler.admission import Wishes
from tests.deployments.conftest import MAX_MODEL_LEN, RunningEngine
from tests.deployments.engine_watch import Watch
from tests.deployments.stand_ins import PATIENCE_S, StandInEngine, SteeredRouter, until

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

PROMPT = [40 + i % 100 for i in range(300)]  # more than two blocks
ENDLESS = 5000
_indices = iter(range(1000, 2000))


@dataclass
class Caller:
    tenant: str = "acme"
    conversation: str | None = None
    wishes: Wishes = field(default_factory=Wishes)
    admission: AdmissionRecord = field(default_factory=AdmissionRecord)


class Frontend:
    """A gateway's vLLM over a fleet that a test steers."""

    def __init__(
        self, config: VllmConfig, router: SteeredRouter, view: FleetView, client_index: int
    ) -> None:
        self.router, self.view, self.client_index = router, view, client_index
        self.caller = Caller()
        self.edge: HttpEdge | None = None  # says who is calling where one stands in front
        metrics = RequestMetrics("gateway", TenantLabels())
        self.client = FleetClient(config, view, self.current_caller, metrics, PATIENCE_S)
        self.llm = FleetLLM(config, self.client)

    def current_caller(self) -> Any:
        return self.edge.current_caller() if self.edge else self.caller

    @property
    def num_registered(self) -> int:
        """Requests on vLLM's register and ours: none once all have ended."""
        register = self.llm.output_processor
        return len(register.request_states) + len(register.parent_requests) + self.client.num_open

    async def generate(self, request_id: str = "r1", **params: Any) -> list[int]:
        """The tokens of a whole request."""
        return [token async for tokens in self.stream(request_id, **params) for token in tokens]

    async def stream(
        self, request_id: str = "r1", **params: Any
    ) -> AsyncGenerator[list[int], None]:
        async with aclosing(self.outputs(request_id, **params)) as outputs:
            async for output in outputs:
                for choice in output.outputs:
                    yield list(choice.token_ids)

    def outputs(self, request_id: str = "r1", **params: Any) -> Any:
        defaults = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 8}
        kind = RequestOutputKind.DELTA
        sampling = SamplingParams(**{**defaults, "output_kind": kind, **params})
        return self.llm.generate({"prompt_token_ids": PROMPT}, sampling, request_id)


@pytest.fixture(scope="module")
def arguments(engine_settings: AppArgs) -> dict[str, Any]:
    return engine_args(engine_settings, engine_settings.model, on_cuda=False)


@pytest.fixture(scope="module")
def config(arguments: dict[str, Any]) -> VllmConfig:
    return make_engine_args(arguments).create_engine_config()


@pytest.fixture
def new_frontend(config: VllmConfig) -> Callable[..., Any]:
    """A frontend that reaches the engines of these cards; the router places on the first."""

    @asynccontextmanager
    async def start(*cards: EngineCard) -> AsyncIterator[Frontend]:
        client_index = next(_indices)
        with SteeredRouter() as router:
            router.cards = list(cards)
            with closing(FleetView(router.handle, client_index, PATIENCE_S)) as view:
                frontend = Frontend(config, router, view, client_index)
                async with asyncio.timeout(PATIENCE_S):
                    await view.start()
                await until(lambda: view.num_up == len(cards))
                router.place_on(cards[0].engine_id)
                try:
                    yield frontend
                finally:
                    frontend.llm.shutdown()

    return start


@pytest.fixture(autouse=True)
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_links, "KNOCK_S", 0.002)
    monkeypatch.setattr(fleet_view, "DIRECTORY_S", 0.01)
    monkeypatch.setattr(router_link, "PAUSE_S", 0.002)


async def test_tokens_are_streamed(engine: RunningEngine, new_frontend: Any) -> None:
    """They come in many pieces, and are those of the whole answer."""
    async with new_frontend(engine.card) as frontend:
        pieces = [tokens async for tokens in frontend.stream("r1", max_tokens=40)]
        kind = RequestOutputKind.FINAL_ONLY
        whole = await frontend.generate("r2", max_tokens=40, output_kind=kind)

        assert [token for piece in pieces for token in piece] == whole
        assert len(whole) == 40
        assert len(pieces) > 1
        assert frontend.num_registered == 0


async def test_many_streams_run_at_once(engine: RunningEngine, new_frontend: Any) -> None:
    """Each gets its own tokens, more of them than the engine runs at a time."""
    async with new_frontend(engine.card) as frontend:
        lengths = {f"r{i}": 5 + i for i in range(12)}
        answers = await asyncio.gather(
            *(frontend.generate(name, max_tokens=length) for name, length in lengths.items())
        )
        assert [len(answer) for answer in answers] == list(lengths.values())
        assert frontend.num_registered == 0


async def test_a_client_that_leaves_while_its_request_is_placed_leaves_nothing(
    engine: RunningEngine, watch: Watch, new_frontend: Any
) -> None:
    """Neither on vLLM's register nor on ours nor in the engine."""
    async with new_frontend(engine.card) as frontend:
        frontend.router.place = lambda _: None
        task = asyncio.create_task(frontend.generate("r1"))
        await until(lambda: frontend.router.asked(Admit))
        assert frontend.num_registered > 0
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

        assert frontend.num_registered == 0
        assert await watch.live() == set()


@pytest.mark.parametrize("choices", [1, 3])
async def test_a_client_that_leaves_a_stream_stops_its_request(
    engine: RunningEngine, watch: Watch, new_frontend: Any, choices: int
) -> None:
    """With all of its choices, in the engine too."""
    async with new_frontend(engine.card) as frontend:
        stream = frontend.stream("r1", max_tokens=ENDLESS, n=choices, temperature=1.0)
        await anext(stream)
        assert len(await watch.live()) == choices
        await stream.aclose()

        await asyncio.wait_for(watch.until_idle(), PATIENCE_S)
        assert frontend.num_registered == 0


async def test_a_request_without_output_moves_to_another_engine(
    engine: RunningEngine, new_frontend: Any
) -> None:
    """Its client sees one whole answer, that of an undisturbed request."""
    with StandInEngine("engine-a") as a:
        async with new_frontend(a.card, engine.card) as frontend:
            task = asyncio.create_task(frontend.generate("moved"))
            await a.received()
            frontend.router.place_on(engine.card.engine_id)
            a.close()
            moved = await asyncio.wait_for(task, PATIENCE_S)

            assert moved == await frontend.generate("undisturbed")
            assert frontend.num_registered == 0


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"min_tokens": 6, "max_tokens": 8, "ignore_eos": False},
        {"repetition_penalty": 1.3},
        {"temperature": 1.0, "seed": 5},
        {"presence_penalty": 1.5, "frequency_penalty": 0.5},
        {"structured_outputs": StructuredOutputsParams(regex="[a-c]{8}")},
    ],
    ids=str,
)
async def test_an_answer_goes_on_on_another_engine(
    engine: RunningEngine, new_frontend: Any, params: dict[str, Any]
) -> None:
    """Its client sees one whole answer, that of an undisturbed request, with its logprobs."""
    params = {"logprobs": 2, **params}
    with StandInEngine("engine-a") as a:
        async with new_frontend(a.card, engine.card) as frontend:
            frontend.router.place_on(engine.card.engine_id)
            tokens, logprobs = await told(frontend.outputs("undisturbed", **params))

            frontend.router.place_on("engine-a")
            telling = asyncio.create_task(told(frontend.outputs("moved", **params)))
            request_id = await added(a)
            for step in (tokens[:1], tokens[1:3]):
                await a.send(frontend.client_index, some_tokens(request_id, step))
            owned = frontend.client._owned[request_id]
            await until(lambda: len(owned.transcript) == 3)
            frontend.router.place_on(engine.card.engine_id)
            a.close()
            moved_tokens, moved_logprobs = await asyncio.wait_for(telling, PATIENCE_S)

            assert moved_tokens == tokens
            assert moved_logprobs == pytest.approx(logprobs[3:], abs=1e-3)
            assert frontend.num_registered == 0


async def test_usage_is_that_of_the_request_that_was_sent(
    new_frontend: Any, engine: RunningEngine, arguments: dict[str, Any]
) -> None:
    """Not that of the prompt by which another engine went on."""
    body = chat(stream=True, stream_options={"include_usage": True})
    with StandInEngine("engine-a") as a:
        async with (
            new_frontend(a.card, engine.card) as frontend,
            api(frontend, arguments) as client,
        ):
            streaming = asyncio.create_task(client.post("/v1/chat/completions", json=body))
            request_id = await added(a)
            prompt_tokens = frontend.client._owned[request_id].admit.request.prompt_tokens
            await a.send(frontend.client_index, some_tokens(request_id, [42, 43, 44]))
            await until(lambda: len(frontend.client._owned[request_id].transcript) == 3)
            frontend.router.place_on(engine.card.engine_id)
            a.close()
            answer = await asyncio.wait_for(streaming, PATIENCE_S)

            *_, last, done = [line for line in answer.text.splitlines() if line]
            assert done == "data: [DONE]"
            usage = json.loads(last.removeprefix("data: "))["usage"]
            assert (usage["prompt_tokens"], usage["completion_tokens"]) == (prompt_tokens, 8)


async def test_an_answer_that_cannot_be_repeated_ends_with_a_clear_error(
    engine: RunningEngine, new_frontend: Any
) -> None:
    """The lost engine is named, and trying again may help (503); other requests go on."""
    with StandInEngine("engine-a") as a:
        async with new_frontend(a.card, engine.card) as frontend:
            stream = frontend.stream("r1", presence_penalty=1.0)
            first = asyncio.create_task(anext(stream))
            request_id = await added(a)
            await a.send(frontend.client_index, some_tokens(request_id, [42]))
            assert await first == [42]
            frontend.router.place_on(engine.card.engine_id)
            a.close()

            with pytest.raises(EngineLostError, match="engine-a, which was serving") as caught:
                await anext(stream)
            assert caught.value.http_status == 503
            assert frontend.num_registered == 0
            assert await frontend.generate("r2")


async def test_with_one_choice_lost_the_others_are_not_worked_for(new_frontend: Any) -> None:
    """A request of two choices on two engines ends as one: the other choice is stopped too."""
    with StandInEngine("engine-a") as a, StandInEngine("engine-b") as b:
        async with new_frontend(a.card, b.card) as frontend:
            engines = iter(["engine-a", "engine-b", "engine-b"])
            frontend.router.place = lambda _: Placed(next(engines), 0)
            stream = frontend.stream("r1", n=2, temperature=1.0, seed=1)
            first = asyncio.create_task(anext(stream))
            lost, other = await added(a), await added(b)
            await a.send(frontend.client_index, some_tokens(lost, [42]))
            await first
            a.close()
            assert await added(b) == lost
            await b.send(frontend.client_index, some_tokens(lost, [43]))

            with pytest.raises(EngineLostError):
                await anext(stream)
            assert {await aborted(b), await aborted(b)} == {lost, other}
            assert frontend.num_registered == 0


@pytest.mark.parametrize("choices", [1, 2])
async def test_without_an_engine_requests_are_refused(new_frontend: Any, choices: int) -> None:
    """With 503, not as an error of the server's."""
    with StandInEngine("engine-a") as a:
        async with new_frontend(a.card) as frontend:
            a.close()
            await until(lambda: frontend.view.num_up == 0)
            frontend.router.place = lambda _: Refused("nobody has joined")

            with pytest.raises(EngineLostError, match="no engine is ready"):
                await frontend.generate("r1", n=choices, temperature=1.0)
            assert frontend.num_registered == 0


async def test_past_its_bound_a_gateway_refuses(
    engine: RunningEngine, new_frontend: Any, config: VllmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Requests beyond it leave nothing behind; those within are served."""
    monkeypatch.setattr(config.scheduler_config, "max_num_queued_reqs", 1)
    async with new_frontend(engine.card) as frontend:
        stream = frontend.stream("r1", max_tokens=ENDLESS)
        await anext(stream)
        with pytest.raises(QueueOverflowError):
            await frontend.generate("r2")
        assert await anext(stream)
        await stream.aclose()
        assert frontend.num_registered == 0


async def test_tenants_share_no_cached_prompt(engine: RunningEngine, new_frontend: Any) -> None:
    """One tenant's second request finds its first in the cache; another tenant's does not."""

    async def cached_tokens(request_id: str, tenant: str) -> int:
        frontend.caller = replace(frontend.caller, tenant=tenant)
        outputs = [output async for output in frontend.outputs(request_id)]
        return int(outputs[0].num_cached_tokens)

    async with new_frontend(engine.card) as frontend:
        assert await cached_tokens("r1", "one") == 0
        assert await cached_tokens("r2", "one") > 0
        assert await cached_tokens("r3", "other") == 0


async def test_the_frontend_is_ill_when_it_no_longer_reads_outputs(
    engine: RunningEngine, new_frontend: Any
) -> None:
    """A task that died would leave every stream waiting."""
    async with new_frontend(engine.card) as frontend:
        await frontend.llm.check_health()
        assert not frontend.llm.errored
        frontend.llm.output_handler.cancel()
        await until(lambda: frontend.llm.errored)

        with pytest.raises(Exception, match="EngineCore"):
            await frontend.llm.check_health()


async def test_what_the_engine_found_out_is_taken_over(
    engine: RunningEngine, config: VllmConfig
) -> None:
    """Its blocks and its longest request are the gateway's too."""
    adopt_ready(config, engine.card.ready)

    assert config.cache_config.num_gpu_blocks == engine.card.num_blocks
    assert config.cache_config.block_size == engine.card.block_tokens
    assert config.model_config.max_model_len == MAX_MODEL_LEN


class State:
    """What the edge may ask a gateway; nothing here does."""

    name = "gateway-0"

    async def fairness(self) -> bytes:
        return b"{}"

    async def check_ready(self) -> None: ...

    def tools_called(self, tenant: str, conversation: str, tools: list[str]) -> None: ...


async def dressed(frontend: Frontend, arguments: dict[str, Any]) -> ASGIApp:
    """The frontend's API behind the edge that goes in front of it."""
    frontend.edge = HttpEdge(partial(open_directory, None, {}), max_body_bytes=2**20)
    app = await build_api(frontend.llm, make_server_args(arguments, {}))
    return frontend.edge.dress(app, State())


@asynccontextmanager
async def api(frontend: Frontend, arguments: dict[str, Any]) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(await dressed(frontend, arguments))
    async with httpx2.AsyncClient(transport=transport, base_url="http://gateway") as client:
        yield client


def chat(**changes: Any) -> dict[str, Any]:
    message = {"role": "user", "content": "Hello"}
    return {"model": "tiny", "messages": [message], "max_tokens": 8, "ignore_eos": True, **changes}


async def test_chats_are_answered(
    engine: RunningEngine, new_frontend: Any, arguments: dict[str, Any]
) -> None:
    """By vLLM's own server code, in OpenAI's shape."""
    async with new_frontend(engine.card) as frontend, api(frontend, arguments) as client:
        answer = await client.post("/v1/chat/completions", json=chat())

        assert answer.status_code == 200
        assert answer.json()["usage"]["completion_tokens"] == 8
        assert answer.json()["choices"][0]["finish_reason"] == "length"


async def test_a_client_cannot_speak_for_another_tenant(
    engine: RunningEngine, watch: Watch, new_frontend: Any, arguments: dict[str, Any]
) -> None:
    """What it writes into vLLM's extra arguments is overruled."""
    claim = {"fastswitch_tenant": "somebody-else"}
    async with new_frontend(engine.card) as frontend, api(frontend, arguments) as client:
        await watch.progress(is_full=False)
        body = chat(vllm_xargs=claim)
        await client.post("/v1/chat/completions", json=body, headers={"X-Tenant": "acme"})
        finished = (await watch.progress(is_full=False)).finished
    assert [request.tenant for request in finished] == ["acme"]


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_a_client_that_leaves_stops_its_request(
    engine: RunningEngine,
    watch: Watch,
    new_frontend: Any,
    arguments: dict[str, Any],
    is_streamed: bool,  # noqa: FBT001
) -> None:
    """Serve says that it has left and cancels the call at once: the engine hears of it."""
    body = json.dumps(chat(max_tokens=ENDLESS, stream=is_streamed)).encode()
    messages = [{"type": "http.request", "body": body, "more_body": False}]
    has_left = asyncio.Event()

    async def receive() -> Any:
        if messages:
            return messages.pop()
        await has_left.wait()
        return {"type": "http.disconnect"}

    async def send(_message: Any) -> None: ...

    async with new_frontend(engine.card) as frontend:
        app = await dressed(frontend, arguments)
        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "headers": headers, "query_string": b""}
        path = "/v1/chat/completions"
        scope |= {"path": path, "raw_path": path.encode(), "root_path": "", "scheme": "http"}
        call = asyncio.ensure_future(app(scope, receive, send))
        async with asyncio.timeout(PATIENCE_S):
            while not await watch.live():
                pass
        has_left.set()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

        assert await watch.live() == set()
        assert frontend.num_registered == 0


async def test_without_an_engine_the_answer_says_so(
    new_frontend: Any, arguments: dict[str, Any]
) -> None:
    """503 in OpenAI's error shape."""
    with StandInEngine("engine-a") as a:
        async with new_frontend(a.card) as frontend, api(frontend, arguments) as client:
            a.close()
            await until(lambda: frontend.view.num_up == 0)
            answer = await client.post("/v1/chat/completions", json=chat())

            assert answer.status_code == 503
            assert "no engine is ready" in answer.json()["error"]["message"]


CALLS = {
    "/v1/chat/completions": chat(),
    "/v1/completions": {"model": "tiny", "prompt": "Hello", "max_tokens": 8},
    "/v1/responses": {"model": "tiny", "input": "Hello", "max_output_tokens": 8},
    "/v1/messages": {
        "model": "tiny",
        "max_tokens": 8,
        "messages": [{"role": "user", "content": "Hello"}],
    },
}


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("path", CALLS)
async def test_a_tenant_past_its_limit_is_answered_429(
    new_frontend: Any,
    arguments: dict[str, Any],
    path: str,
    is_streamed: bool,  # noqa: FBT001
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Streamed or not, by every API, before anything of an answer; and not as a fault of ours."""
    with StandInEngine("engine-a") as a:
        async with new_frontend(a.card) as frontend, api(frontend, arguments) as client:
            frontend.router.place = lambda _: OverLimit("default", "tokens_per_minute", 9, 8, 3.5)
            answer = await client.post(path, json={**CALLS[path], "stream": is_streamed})

            assert (answer.status_code, answer.headers["retry-after"]) == (429, "4")
            assert "has reached its tokens_per_minute of 9" in answer.json()["error"]["message"]
            assert (a.num_unread, frontend.num_registered) == (0, 0)
            assert [record for record in caplog.records if record.exc_info] == []


@pytest.mark.parametrize("is_streamed", [False, True])
@pytest.mark.parametrize("several", [{"n": 3}, {"prompt": ["a", "b", "c"]}])
async def test_a_request_of_several_sequences_is_refused_as_one(
    new_frontend: Any,
    arguments: dict[str, Any],
    several: dict[str, Any],
    is_streamed: bool,  # noqa: FBT001
) -> None:
    """The second is past the limit: the answer is 429, and the first is taken back."""
    with StandInEngine("engine-a") as a:
        async with new_frontend(a.card) as frontend, api(frontend, arguments) as client:
            places = iter([Placed("engine-a", 0), OverLimit("default", "max_concurrent", 1, 1, 1)])
            frontend.router.place = lambda _: next(places, Placed("engine-a", 0))
            body = {**CALLS["/v1/completions"], **several, "stream": is_streamed}
            answer = await client.post("/v1/completions", json=body)

            assert answer.status_code == 429
            await until(lambda: frontend.num_registered == 0)
            added: set[str] = set()
            aborted: set[str] = set()
            while not added or added != aborted:
                kind, payload, *_ = await a.received()
                if kind == EngineCoreRequestType.ADD.value:
                    added.add(msgspec.msgpack.decode(payload, type=EngineCoreRequest).request_id)
                else:
                    aborted |= set(msgspec.msgpack.decode(payload))


@pytest.mark.parametrize(("field", "header"), [(3, None), (3, "-4"), (None, "-4")])
async def test_vllms_own_priority_is_a_wish(
    new_frontend: Any, arguments: dict[str, Any], field: int | None, header: str | None
) -> None:
    """In the body or in the header, which counts before it."""
    with StandInEngine("engine-a") as a:
        async with new_frontend(a.card) as frontend, api(frontend, arguments) as client:
            frontend.router.place = lambda _: OverLimit("default", "max_concurrent", 1, 1, 1)
            body = chat() if field is None else chat(priority=field)
            headers = {} if header is None else {"X-Vllm-Priority": header}
            await client.post("/v1/chat/completions", json=body, headers=headers)

            [admit] = frontend.router.asked(Admit)
            assert admit.request.wishes.priority == int(header or field or 0)


async def test_past_its_bound_a_gateway_answers_503(
    new_frontend: Any,
    arguments: dict[str, Any],
    config: VllmConfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stream as well, with the time after which to come again."""
    monkeypatch.setattr(config.scheduler_config, "max_num_queued_reqs", 1)
    with StandInEngine("engine-a") as a:
        async with new_frontend(a.card) as frontend, api(frontend, arguments) as client:
            path = "/v1/chat/completions"
            first = asyncio.create_task(client.post(path, json=chat()))
            await a.received()
            answer = await client.post(path, json=chat(stream=True))
            first.cancel()

            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
            assert answer.headers["x-llm-d-request-dropped-reason"] == "rejected-saturated"


async def test_a_stream_that_cannot_go_on_ends_with_the_error(
    new_frontend: Any, arguments: dict[str, Any]
) -> None:
    """As an event of the stream, in OpenAI's error shape."""
    with StandInEngine("engine-a") as a, StandInEngine("engine-b") as b:
        async with new_frontend(a.card, b.card) as frontend, api(frontend, arguments) as client:
            streaming = asyncio.create_task(
                client.post("/v1/chat/completions", json=chat(stream=True, seed=1))
            )
            request_id = await added(a)
            await a.send(frontend.client_index, some_tokens(request_id, [42]))
            await until(lambda: len(frontend.client._owned[request_id].transcript) == 1)
            frontend.router.place_on("engine-b")
            a.close()
            await added(b)
            await b.send(frontend.client_index, some_tokens(request_id, [43]))
            answer = await asyncio.wait_for(streaming, PATIENCE_S)

            events = [line for line in answer.text.splitlines() if "error" in line]
            assert len(events) == 1
            assert "engine-a, which was serving this request, stopped" in events[0]


async def test_only_the_served_routes_are_open(
    engine: RunningEngine, new_frontend: Any, arguments: dict[str, Any]
) -> None:
    """All that are named are there, and nothing else of vLLM's."""
    async with new_frontend(engine.card) as frontend:
        app = await build_api(frontend.llm, make_server_args(arguments, {}))
        assert {getattr(route, "path", None) for route in app.router.routes} == SERVED_ROUTES


async def added(engine: StandInEngine) -> str:
    """The id of the request that the engine receives next."""
    kind, payload, *_ = await engine.received()
    assert kind == EngineCoreRequestType.ADD.value
    return str(msgspec.msgpack.decode(payload)[0])


async def aborted(engine: StandInEngine) -> str:
    """The id of the one request that the engine is told to stop next."""
    kind, payload = await engine.received()
    assert kind == EngineCoreRequestType.ABORT.value
    [request_id] = msgspec.msgpack.decode(payload)
    return str(request_id)


def some_tokens(request_id: str, tokens: list[int]) -> bytes:
    return msgspec.msgpack.encode(EngineCoreOutputs(outputs=[EngineCoreOutput(request_id, tokens)]))


async def told(outputs: AsyncGenerator[Any, None]) -> tuple[list[int], list[float]]:
    """The tokens of a whole answer, and the logprobs of those that came with any."""
    tokens: list[int] = []
    logprobs: list[float] = []
    async for output in outputs:
        [choice] = output.outputs
        tokens += choice.token_ids
        scored = choice.token_ids[len(choice.token_ids) - len(choice.logprobs or ()) :]
        rows = zip(scored, choice.logprobs or (), strict=True)
        logprobs += [row[token].logprob for token, row in rows]
    return tokens, logprobs
