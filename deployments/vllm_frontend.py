"""vLLM's own API server, over the fleet: its app, its AsyncLLM, our engine client.

Owns how vLLM's frontend is put together in a gateway and which of its routes are served. All
protocol code (OpenAI, Anthropic, tools, structured output, streaming) is vLLM's. This module
and its ``vllm_`` siblings are the only ones of the deployments that touch vLLM's private surfaces;
``tests/deployments/test_vllm_contract.py`` pins each of them.
"""

import asyncio
import logging
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
from fastapi import FastAPI
from vllm.config import VllmConfig
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.exceptions import GracefulHTTPError
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine import EngineCoreReadyResponse, EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.engine.output_processor import RequestOutputCollector
from vllm.v1.engine.parallel_sampling import ParentRequest
from vllm.v1.executor import Executor

from deployments.vllm_client import FleetClient
from deployments.vllm_metrics import GatewaySideLogger

# Everything else vLLM's app has (profiling, scaling, LoRA loading, SageMaker's doubles ...) stays
# closed: an operator's tools have no place on the users' port.
SERVED_ROUTES = frozenset(
    {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/responses/{response_id}",
        "/v1/responses/{response_id}/cancel",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/models",
        "/tokenize",
        "/detokenize",
        "/metrics",
        "/version",
        "/openapi.json",
        "/docs",
    }
)


# Those that log a request's error, with its traceback, as if the server had failed.
LOGGING_MODULES = (
    "vllm.entrypoints.openai.chat_completion.serving",
    "vllm.entrypoints.openai.completion.serving",
    "vllm.entrypoints.anthropic.api_router",
    "vllm.entrypoints.anthropic.serving",
)


class _RefusalsLeftOut(logging.Filter):
    """Keeps refused requests out of the log: a flood past a limit would fill the disk."""

    def __init__(self, client: FleetClient) -> None:
        super().__init__()
        self._client = client

    def filter(self, record: logging.LogRecord) -> bool:
        return record.exc_info is None or not self._client.has_denied()


class FleetLLM(AsyncLLM):
    """vLLM's AsyncLLM with the fleet in the place of its one engine."""

    def __init__(
        self, vllm_config: VllmConfig, client: FleetClient, *, has_metrics: bool = False
    ) -> None:
        with _client_made_beforehand(client):
            super().__init__(
                vllm_config=vllm_config,
                executor_class=Executor,
                log_stats=False,
                log_requests=False,
                # Brings vLLM to count, where its own switch would print every step as well.
                stat_loggers=[GatewaySideLogger] if has_metrics else None,
            )
        self.client = client
        self._aborts: set[asyncio.Task[None]] = set()
        client.fail_request = self._fail_request

    async def _add_request(
        self,
        request: EngineCoreRequest,
        prompt: str | None,
        parent_req: ParentRequest | None,
        index: int,
        queue: RequestOutputCollector,
    ) -> None:
        # vLLM registers the request first; if sending then fails or the client leaves meanwhile,
        # nobody would take it off the register again.
        try:
            await super()._add_request(request, prompt, parent_req, index, queue)
        except BaseException:
            self.output_processor.abort_requests([request.request_id], internal=True)
            raise

    def check_admission(self, n: int = 1, request_id: str | None = None) -> None:
        try:
            super().check_admission(n, request_id)
        except GracefulHTTPError as error:
            self.client.note_overload(error.message)
            raise

    @property
    def errored(self) -> bool:
        return self.output_handler is not None and self.output_handler.done()

    def _fail_request(self, request_id: str, error: Exception) -> None:
        """End a request with ``error``, and with it the others of one ``n > 1`` request."""
        state = self.output_processor.request_states.get(request_id)
        if state is None or state.queue is None:
            return
        state.queue.put(error)
        whole = state.parent_req.request_id if state.parent_req else request_id
        others = self.output_processor.abort_requests([whole], internal=True)
        abort = asyncio.create_task(self.engine_core.abort_requests_async(others))
        self._aborts.add(abort)
        abort.add_done_callback(self._aborts.discard)


@contextmanager
def _client_made_beforehand(client: FleetClient) -> Iterator[None]:
    """AsyncLLM makes its engine client itself, by this one call; hand it ours instead."""
    original = EngineCoreClient.__dict__["make_async_mp_client"]
    EngineCoreClient.make_async_mp_client = staticmethod(lambda **_: client)
    try:
        yield
    finally:
        EngineCoreClient.make_async_mp_client = original


def make_server_args(engine_args: Mapping[str, Any], api_args: Mapping[str, Any]) -> Namespace:
    """The namespace vLLM's app wants: its own defaults with our settings written in.

    Raises:
        ValueError: a name that vLLM's API server does not know.
    """
    args = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    settings = {**engine_args, **api_args}
    unknown = sorted(name for name in settings if not hasattr(args, name))
    if unknown:
        raise ValueError(f"vLLM's API server has no setting called {', '.join(unknown)}")
    for name, value in settings.items():
        setattr(args, name, value)
    args.disable_log_stats = True
    validate_parsed_serve_args(args)
    return args


def adopt_ready(vllm_config: VllmConfig, ready: bytes) -> None:
    """Take over what an engine found out only when it started (as vLLM's own client does)."""
    response = msgspec.msgpack.decode(ready, type=EngineCoreReadyResponse)
    model, cache = vllm_config.model_config, vllm_config.cache_config
    model.max_model_len = min(model.max_model_len, response.max_model_len)
    cache.num_gpu_blocks = response.num_gpu_blocks
    cache.block_size = response.block_size


async def build_api(llm: FleetLLM, args: Namespace) -> FastAPI:
    """Make vLLM's app for ``llm``, with only ``SERVED_ROUTES`` left."""
    for module in LOGGING_MODULES:
        logging.getLogger(module).addFilter(_RefusalsLeftOut(llm.client))
    tasks = await llm.get_supported_tasks()
    app = build_app(args, tasks, llm.model_config)
    await init_app_state(llm, app.state, args, tasks)
    app.router.routes[:] = [
        route for route in app.router.routes if getattr(route, "path", None) in SERVED_ROUTES
    ]
    return app
