"""What the deployments lean on in vLLM, beyond its documented surface.

Each test names one thing; a new release of vLLM that changes it breaks that test instead of the
service. What can be run without an engine is run; the rest is pinned by name and signature.
"""

import asyncio
import dataclasses
import importlib
import inspect
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from prometheus_client import REGISTRY
from vllm import RequestOutput, SamplingParams, version
from vllm.config import SchedulerConfig, VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.generate.base.serving import PRIORITY_HEADER
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.serve.utils.api_utils import get_max_tokens
from vllm.exceptions import GracefulHTTPError, QueueOverflowError
from vllm.outputs import CompletionOutput
from vllm.sampling_params import RequestOutputKind, SamplingType
from vllm.tracing.utils import TRACE_HEADERS as VLLM_TRACE_HEADERS
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import (
    EngineCoreEvent,
    EngineCoreEventType,
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreReadyResponse,
    EngineCoreRequest,
    EngineCoreRequestType,
    FinishReason,
)
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core import EngineCore, EngineCoreProc, EngineShutdownState
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector, RequestState
from vllm.v1.engine.utils import EngineZmqAddresses
from vllm.v1.executor import Executor
from vllm.v1.metrics.loggers import PrometheusStatLogger, StatLoggerManager
from vllm.v1.metrics.prometheus import unregister_vllm_metrics
from vllm.v1.metrics.stats import PrefixCacheStats, SchedulerStats
from vllm.v1.outputs import LogprobsLists
from vllm.v1.request import Request
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from app.edge import wishes
from app.engine_settings import engine_args
from app.settings import AppArgs
from deployments import vllm_client, vllm_continuation
from deployments.engine_order import CHANGES, EXCHANGE, HEARTBEAT, STAGE
from deployments.vllm_client import FleetClient
from deployments.vllm_continuation import engine_wide
from deployments.vllm_engine import (
    ListeningEngineCore,
    _has_news,
    make_engine_args,
    one_sentence,
)
from deployments.vllm_frontend import (
    LOGGING_MODULES,
    SERVED_ROUTES,
    FleetLLM,
    make_server_args,
)
from deployments.vllm_metrics import (
    ENGINE_SIDE,
    EngineSideLogger,
    EngineStats,
    GatewaySideLogger,
)
from deployments.vllm_traces import STATES
from ops.tracing.http_trace import TRACE_HEADERS
from scheduler import vllm_scheduler


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def fields(struct: Any) -> tuple[str, ...]:
    return tuple(struct.__struct_fields__)


@pytest.fixture(scope="module")
def arguments(engine_settings: AppArgs) -> dict[str, Any]:
    return engine_args(engine_settings, engine_settings.model, on_cuda=False)


@pytest.fixture(scope="module")
def config(arguments: dict[str, Any]) -> VllmConfig:
    return make_engine_args(arguments).create_engine_config()


def test_vllm_is_the_release_that_this_is_written_for() -> None:
    """Another release is another contract."""
    assert version.__version__.startswith("0.32.0")


# --- the engine process -----------------------------------------------------------------------


class BareCore(EngineCoreProc):
    """An engine core without an engine: only what its constructor does around one."""

    def __init__(self, config: VllmConfig) -> None:
        self.calls: dict[str, tuple[Any, ...]] = {}
        super().__init__(
            config,
            local_client=True,
            handshake_address="",
            executor_class=Executor,
            log_stats=False,
        )
        self.output_thread.join()

    @contextmanager
    def _perform_handshakes(self, *args: Any) -> Iterator[EngineZmqAddresses]:
        self.calls["handshakes"] = args
        yield EngineZmqAddresses(inputs=[], outputs=[])

    def process_input_sockets(self, *args: Any) -> None:
        self.calls["input"] = args
        args[-1].set()

    def process_output_sockets(self, *args: Any) -> None:
        self.calls["output"] = args


@pytest.fixture
def bare(config: VllmConfig, monkeypatch: pytest.MonkeyPatch) -> BareCore:
    monkeypatch.setattr(EngineCore, "__init__", lambda *_: None)
    return BareCore(config)


def test_a_core_gets_its_addresses_from_its_handshakes(bare: BareCore) -> None:
    """Nobody else is asked; without addresses it opens no socket itself."""
    assert len(bare.calls["handshakes"]) == 5
    assert bare.calls["input"][:2] == ([], None)
    assert bare.calls["output"] == ([], None, 0)


def test_a_core_waits_for_its_input_thread(bare: BareCore) -> None:
    """The last of the thread's four arguments is the event that says it listens."""
    assert len(bare.calls["input"]) == 4
    assert bare.calls["input"][3].is_set()


def test_a_core_keeps_its_queues_and_state_under_these_names(bare: BareCore) -> None:
    """Input, output, and the state that a signal asks to end by."""
    assert bare.input_queue.empty()
    assert bare.output_queue.empty()
    assert bare.shutdown_state is EngineShutdownState.RUNNING
    assert EngineShutdownState.REQUESTED in EngineShutdownState
    assert isinstance(EngineCoreProc.ENGINE_CORE_DEAD, bytes)
    assert "self.aborts_queue = queue.Queue" in inspect.getsource(EngineCore)


def test_a_core_ends_its_loop_by_a_system_exit(
    bare: BareCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once nothing is left to do after it was asked to."""
    monkeypatch.setattr(bare, "_handle_shutdown", lambda: False)
    bare.enable_fault_tolerance = False
    with pytest.raises(SystemExit):
        bare.run_busy_loop()


def test_a_core_that_is_asked_to_end_would_tell_of_aborts(
    bare: BareCore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the method that its loop asks whether to go on. Ours ends there and tells nothing."""
    asked: list[str] = []
    monkeypatch.setattr(bare, "_send_abort_outputs", asked.append)
    bare.vllm_config = SimpleNamespace(shutdown_timeout=0)
    bare.scheduler = SimpleNamespace(
        get_num_unfinished_requests=lambda: 1,
        finish_requests=lambda *_: "aborted",
        has_requests=lambda: False,
    )
    bare.batch_queue = None
    for state, goes_on in (
        (EngineShutdownState.RUNNING, True),
        (EngineShutdownState.REQUESTED, False),
    ):
        bare.shutdown_state = state
        assert ListeningEngineCore._handle_shutdown(bare) is goes_on
        assert asked == []
        assert bare._handle_shutdown() is goes_on

    assert asked == ["aborted"]


def test_outputs_are_queued_by_client(bare: BareCore) -> None:
    """An aborted request's end too: pairs of a client's index and its outputs."""
    bare._send_abort_outputs([SimpleNamespace(request_id="r1", client_index=7)])
    [(client_index, outputs)] = [bare.output_queue.get_nowait()]

    assert client_index == 7
    assert isinstance(outputs, EngineCoreOutputs)
    assert [output.request_id for output in outputs.outputs] == ["r1"]


def test_requests_are_added_with_their_wave_and_aborted_by_name(bare: BareCore) -> None:
    """What the input thread hands over is what the loop takes apart."""
    taken: list[Any] = []
    bare.add_request = lambda *args: taken.append(args)
    bare.abort_requests = taken.append
    bare._handle_client_request(EngineCoreRequestType.ADD, ("request", 0))
    bare._handle_client_request(EngineCoreRequestType.ABORT, ["r1"])
    bare._handle_client_request(EngineCoreRequestType.WAKEUP, None)

    assert taken == [("request", 0), ["r1"]]


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        (EngineCore.preprocess_add_request, ["self", "request"]),
        (EngineCoreProc._handle_request_preproc_error, ["self", "request"]),
        (EngineCoreProc._handle_client_request, ["self", "request_type", "request"]),
        (EngineCoreProc._make_ready_response, ["self"]),
        (EngineCoreProc._send_abort_outputs, ["self", "aborted_reqs"]),
        (Scheduler.finish_requests, ["self", "request_ids", "finished_status"]),
        (OutputProcessor.abort_requests, ["self", "request_ids", "internal"]),
        (AsyncLLM._add_request, ["self", "request", "prompt", "parent_req", "index", "queue"]),
    ],
)
def test_methods_that_are_called_take_these(method: Any, wanted: list[str]) -> None:
    """By position or by name."""
    assert parameters(method) == wanted


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(ListeningEngineCore, EngineCoreProc), (FleetLLM, AsyncLLM), (FleetClient, EngineCoreClient)],
)
def test_what_is_overridden_is_still_called_so(ours: type, theirs: type) -> None:
    """Each method that replaces one of vLLM's takes what vLLM's took, under the same names."""
    replaced = [
        name
        for name, method in vars(ours).items()
        if inspect.isfunction(method) and hasattr(theirs, name) and name != "__init__"
    ]
    assert replaced
    for name in replaced:
        mine, base = (inspect.signature(getattr(cls, name)) for cls in (ours, theirs))
        takes_all = any(each.kind is each.VAR_POSITIONAL for each in mine.parameters.values())
        assert takes_all or list(mine.parameters) == list(base.parameters), name


def test_an_engine_tells_a_gateway_this_much() -> None:
    """The fields of its card that are vLLM's."""
    known = {field.name for field in dataclasses.fields(EngineCoreReadyResponse)}
    assert known >= {"max_model_len", "num_gpu_blocks", "block_size", "max_num_seqs"}


def test_requests_and_outputs_have_these_fields() -> None:
    """Those that are written, and those that are read."""
    assert set(fields(EngineCoreRequest)) >= {
        *("request_id", "prompt_token_ids", "sampling_params", "arrival_time", "cache_salt"),
        *("client_index", "priority", "session_id"),
    }
    assert set(fields(EngineCoreOutput)) >= {
        *("request_id", "new_token_ids", "finish_reason", "new_logprobs", "prefill_stats"),
        *("new_prompt_logprobs_tensors", "prompt_token_id_logprobs", "events"),
    }
    assert "outputs" in fields(EngineCoreOutputs)
    assert "client_index" in parameters(Request)
    assert "extra_args" in SamplingParams.__struct_fields__


def test_what_a_continued_request_is_made_of_is_called_so(config: VllmConfig) -> None:
    """Its logprobs by row, the ends of an answer, and settings that bear on all requests."""
    assert LogprobsLists._fields[:3] == ("logprob_token_ids", "logprobs", "sampled_token_ranks")
    assert {reason.name for reason in FinishReason} == {
        *("STOP", "LENGTH", "ABORT", "ERROR", "REPETITION")
    }
    assert engine_wide(config) == frozenset()
    for name in ("logits_processors", "return_sampling_mask"):
        assert not getattr(config.model_config, name)
    assert config.watermark_config is None


def test_changed_sampling_parameters_are_a_new_request_of_their_own() -> None:
    """They are copied with all that vLLM has derived, and what is derived from them anew is so."""
    drawn = SamplingParams(temperature=0.7, stop_token_ids=[4], max_tokens=9)
    drawn.update_from_generation_config({"eos_token_id": [2, 3]}, eos_token_id=2)
    assert drawn.sampling_type is SamplingType.RANDOM

    changed = msgspec.structs.replace(drawn, seed=1, max_tokens=5)

    assert changed.sampling_type is SamplingType.RANDOM_SEED
    assert (changed.eos_token_id, changed.all_stop_token_ids) == (2, {2, 3, 4})
    assert (drawn.seed, drawn.max_tokens) == (None, 9)


def test_prompt_logprobs_come_with_the_first_tokens() -> None:
    """So a request without output has had none, and one with output needs no more."""
    assert "assert not prompt_logprobs_tensors" in inspect.getsource(Scheduler.update_from_output)


def test_our_kinds_of_messages_are_none_of_vllms() -> None:
    """Both travel over one socket."""
    kinds = {kind.value for kind in EngineCoreRequestType}
    assert kinds.isdisjoint({HEARTBEAT, EXCHANGE, STAGE, CHANGES})
    assert all(len(kind) == 1 for kind in kinds)


def test_vllms_encoding_is_a_list_of_frames_each_way() -> None:
    """The first is msgpack; lists of names can be told from anything else."""
    frames = MsgpackEncoder().encode(["r1", "r2"])
    assert isinstance(frames, list)
    assert MsgpackDecoder(list[str]).decode(frames) == ["r1", "r2"]
    with pytest.raises(msgspec.ValidationError):
        MsgpackDecoder(list[str]).decode(MsgpackEncoder().encode([1]))


# --- the frontend -----------------------------------------------------------------------------


def test_async_llm_makes_its_engine_client_by_one_call(
    config: VllmConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With named arguments, which are not needed here; the client is kept as ``engine_core``."""
    calls: list[tuple[Any, ...]] = []
    client = SimpleNamespace(shutdown=lambda **_: None)

    def make(*args: Any, **_names: Any) -> Any:
        calls.append(args)
        return client

    monkeypatch.setattr(EngineCoreClient, "make_async_mp_client", staticmethod(make))
    llm = AsyncLLM(vllm_config=config, executor_class=Executor, log_stats=False, log_requests=False)
    try:
        assert calls == [()]
        assert llm.engine_core is client
        assert llm.output_handler is None
        assert llm.output_processor.request_states == llm.output_processor.parent_requests == {}
    finally:
        llm.shutdown()


async def test_async_llm_is_ill_when_it_counts_as_errored() -> None:
    """Its health check asks the property that is overridden."""
    llm = SimpleNamespace(errored=False, dead_error=RuntimeError("dead"))
    await AsyncLLM.check_health(llm)
    llm.errored = True
    with pytest.raises(RuntimeError, match="dead"):
        await AsyncLLM.check_health(llm)


def test_graceful_errors_reach_clients_as_they_are() -> None:
    """A request that ends in one is not reported as the server's failure."""
    error = GracefulHTTPError("gone", HTTPStatus.SERVICE_UNAVAILABLE)
    assert (error.message, error.http_status) == ("gone", 503)
    assert "except (VLLMClientError, GracefulHTTPError)" in inspect.getsource(AsyncLLM.generate)


def test_an_admission_that_vllm_refuses_is_told_by_one_method() -> None:
    """It raises the error that is noted, and is asked by whoever adds requests."""
    assert issubclass(QueueOverflowError, GracefulHTTPError)
    assert "self.check_admission(" in inspect.getsource(AsyncLLM.add_request)
    assert "self.check_admission(" in inspect.getsource(AsyncLLM._add_request)


def test_the_modules_that_log_a_requests_error_are_called_so() -> None:
    """Their loggers have the modules' names."""
    for name in LOGGING_MODULES:
        module = importlib.import_module(name)
        assert module.logger.name == name
        assert "logger.exception(" in inspect.getsource(module)


def test_a_sender_without_a_limit_gets_the_models() -> None:
    """Prompt and output then come to the model's length."""
    assert get_max_tokens(100, None, 30, {}) == 70
    assert get_max_tokens(100, 8, 30, {}) == 8


def test_the_priority_header_has_this_name() -> None:
    """Its form is checked before vLLM reads it."""
    assert PRIORITY_HEADER.lower() == wishes.PRIORITY_HEADER


async def test_an_error_ends_a_requests_outputs() -> None:
    """It takes the place of outputs that were not fetched, and no later output takes its place."""
    queue = RequestOutputCollector(RequestOutputKind.DELTA, "r1")
    queue.put(an_output())
    queue.put(ValueError("lost"))
    queue.put(an_output())
    with pytest.raises(ValueError, match="lost"):
        await asyncio.wait_for(queue.get(), 10)

    queue.put(ValueError("lost"))
    with pytest.raises(ValueError, match="lost"):
        queue.get_nowait()


def an_output() -> RequestOutput:
    choice = CompletionOutput(
        index=0, text="a", token_ids=[1], cumulative_logprob=None, logprobs=None
    )
    return RequestOutput(
        request_id="r1",
        prompt="p",
        prompt_token_ids=[1],
        prompt_logprobs=None,
        outputs=[choice],
        finished=False,
    )


def test_the_register_of_requests_knows_queues_and_parents() -> None:
    """By these names."""
    assert {"queue", "parent_req"} <= set(parameters(RequestState))
    assert "request_id" in inspect.getsource(RequestOutputCollector.__init__)


def test_vllms_app_has_every_route_that_is_served(
    arguments: dict[str, Any], config: VllmConfig
) -> None:
    """One that is renamed would silently be gone."""
    app = build_app(make_server_args(arguments, {}), ("generate",), config.model_config)
    paths = {getattr(route, "path", None) for route in app.router.routes}
    assert paths >= SERVED_ROUTES


# --- settings ---------------------------------------------------------------------------------


def test_vllm_knows_every_engine_argument_that_is_set(arguments: dict[str, Any]) -> None:
    """Under the names that the settings are translated to; the gateway's bound among them."""
    known = {field.name for field in dataclasses.fields(AsyncEngineArgs)}
    assert known >= {*arguments, "max_num_queued_reqs"}
    bound = {field.name for field in dataclasses.fields(SchedulerConfig)}
    assert "max_num_queued_reqs" in bound


def test_engine_arguments_are_built_from_plain_settings(arguments: dict[str, Any]) -> None:
    """Which stay as they were: gateway and engines are given the same."""
    before = dict(arguments)
    made = make_engine_args(arguments)

    assert made.kv_transfer_config.kv_connector == "FastSwitchConnector"
    assert arguments == before


def test_an_unknown_engine_argument_is_an_error_that_names_it(arguments: dict[str, Any]) -> None:
    """In one sentence."""
    with pytest.raises(TypeError) as caught:
        make_engine_args({**arguments, "no_such_argument": 1})
    assert "no_such_argument" in one_sentence(caught.value)


def test_unknown_api_settings_are_refused() -> None:
    """By name, before anything is built."""
    with pytest.raises(ValueError, match="no setting called no_such_setting, not_either"):
        make_server_args({}, {"not_either": 1, "no_such_setting": 2})


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"max_model_len": 10**9}, "max_model_len"),
        ({"dtype": "float7"}, "dtype"),
        ({"model": "./no/such/folder"}, "no/such/folder"),
        ({"max_num_seqs": 0}, "greater than or equal to 1"),
        ({"max_num_batched_tokens": 1}, "max_num_batched_tokens"),
        ({"quantization": "no-such"}, "no-such"),
    ],
)
def test_a_bad_engine_argument_is_explained_in_one_sentence(
    arguments: dict[str, Any], changes: dict[str, Any], reason: str
) -> None:
    """In vLLM's own words, without the frame that pydantic puts around them."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - vLLM raises many
        make_engine_args({**arguments, **changes}).create_engine_config()
    sentence = one_sentence(caught.value)

    assert reason in sentence
    assert "\n" not in sentence
    assert "validation error" not in sentence


def test_the_engine_looks_for_the_tenant_where_the_gateway_writes_it() -> None:
    """Two modules that do not import each other agree on a name."""
    assert vllm_client.TENANT_ARG == vllm_scheduler.TENANT_ARG


def test_the_engine_looks_for_what_a_request_carries_where_the_gateway_writes_it() -> None:
    """Likewise."""
    assert vllm_continuation.CARRIED_ARG == vllm_scheduler.CARRIED_ARG


def test_a_model_folder_that_is_empty_is_explained(
    arguments: dict[str, Any], tmp_path: Path
) -> None:
    """The sentence names the folder."""
    with pytest.raises(Exception) as caught:  # noqa: PT011 - vLLM raises many
        make_engine_args({**arguments, "model": str(tmp_path)}).create_engine_config()
    assert str(tmp_path) in one_sentence(caught.value)


# --- vLLM's own metrics -----------------------------------------------------------------------


def families_of(logger: Any) -> set[str]:
    """vLLM's metrics that this process shows once ``logger`` is made."""
    del logger
    return {family.name for family in REGISTRY.collect() if family.name.startswith("vllm:")}


@pytest.fixture
def _no_vllm_metrics() -> Iterator[None]:
    yield
    unregister_vllm_metrics()


@pytest.mark.usefixtures("_no_vllm_metrics")
def test_an_engines_half_of_vllms_metrics_is_known_by_name(config: VllmConfig) -> None:
    """Every name stands on one side; what an engine counts begins with one of our list."""
    every = families_of(PrometheusStatLogger(config, [0]))
    engine = families_of(EngineSideLogger(config, [0]))
    gateway = families_of(GatewaySideLogger(config, [0]))

    assert engine | gateway == every
    for prefix in ENGINE_SIDE:
        may_be_off = prefix in ("vllm:lora_requests_info", "vllm:cache_config_info")
        assert may_be_off or any(name.startswith(prefix) for name in engine)
    # What is there only with speculative decoding or estimates has vLLM's own classes.
    assert {name for name in engine & gateway if "estimated" not in name} == set()


@pytest.mark.usefixtures("_no_vllm_metrics")
def test_an_engines_statistics_stay_in_its_process(config: VllmConfig) -> None:
    """They are counted under the engine's name and taken out of what goes to a gateway."""
    stats = EngineStats(config, "engine-a")
    queries = SchedulerStats(kv_cache_usage=0.25, prefix_cache_stats=PrefixCacheStats(queries=7))
    alone = EngineCoreOutputs(scheduler_stats=queries)
    beside = EngineCoreOutputs(
        outputs=[EngineCoreOutput("r1", [1])], scheduler_stats=SchedulerStats()
    )

    assert [stats.keep(outputs) for outputs in (alone, beside)] == [False, True]
    assert alone.scheduler_stats is beside.scheduler_stats is None
    labels = {"engine": "engine-a", "model_name": str(config.model_config.served_model_name)}
    assert REGISTRY.get_sample_value("vllm:prefix_cache_queries_total", labels) == 7


def test_what_is_done_with_steps_without_outputs_is_complete() -> None:
    """Fields of a step's outputs: those that only vLLM's data parallel engines use aside."""
    unused = {"engine_index", "timestamp", "wave_complete", "start_wave", "weight_version"}
    assert set(fields(EngineCoreOutputs)) - unused == {
        "outputs",
        "scheduler_stats",
        "utility_output",
        "finished_requests",
    }


def test_vllm_counts_when_it_is_given_a_logger() -> None:
    """AsyncLLM takes loggers of ours; a class of vLLM's Prometheus logger takes its place."""
    assert "stat_loggers" in parameters(AsyncLLM.__init__)
    assert "custom_prometheus_logger" in inspect.getsource(StatLoggerManager.__init__)
    assert parameters(PrometheusStatLogger.record)[1:] == [
        "scheduler_stats",
        "iteration_stats",
        "mm_cache_stats",
        "engine_idx",
    ]


# --- tracing ----------------------------------------------------------------------------------


def test_every_event_of_a_request_has_a_state() -> None:
    """One that vLLM adds would otherwise end the gateway's reading of an engine's message."""
    assert set(STATES) == set(EngineCoreEventType)


def test_outputs_carry_events_and_the_time_of_the_engines_clock() -> None:
    """Over the wire, too: the receiver's clock does not come into it."""
    event = EngineCoreEvent.new_event(EngineCoreEventType.QUEUED, 3.0)
    output = EngineCoreOutput("r1", [], events=[event])
    before_s = time.monotonic()
    sent = EngineCoreOutputs(outputs=[output])
    assert before_s <= sent.timestamp <= time.monotonic()

    sent.timestamp = 5.0
    received = MsgpackDecoder(EngineCoreOutputs).decode(MsgpackEncoder().encode(sent))
    assert received.timestamp == 5.0
    assert received.outputs[0].events == [event]


def test_an_engines_counts_stay_with_it() -> None:
    """vLLM puts them into a message of a step, or into one of their own, to client 0."""
    source = inspect.getsource(Scheduler.update_from_output)
    assert "engine_core_outputs[0] = eco = EngineCoreOutputs()" in source

    alone = EngineCoreOutputs(scheduler_stats=SchedulerStats())
    among = EngineCoreOutputs(
        outputs=[EngineCoreOutput("r1", [1])], scheduler_stats=SchedulerStats()
    )
    ended = EngineCoreOutputs(finished_requests={"r1"}, scheduler_stats=SchedulerStats())

    assert [_has_news(outputs) for outputs in (alone, among, ended)] == [False, True, True]
    assert among.scheduler_stats is ended.scheduler_stats is None


def test_statistics_are_what_engine_arguments_call_them() -> None:
    """Their switch is written by name into what engines are started with."""
    [switch] = [
        each for each in dataclasses.fields(AsyncEngineArgs) if each.name == "disable_log_stats"
    ]
    assert switch.type in (bool, "bool")


def test_vllm_goes_on_from_a_callers_trace_by_these_headers() -> None:
    """They are taken out before it sees them, as its own tracing is off."""
    assert set(TRACE_HEADERS) == set(VLLM_TRACE_HEADERS)
