"""The engine process: vLLM's EngineCore, reachable by any number of gateways.

Run as ``python -m deployments.vllm_engine`` by the EngineReplica, which writes one JSON line
(``EngineOrder``) to its standard input and reads an ``EngineCard`` back from a pipe; the
process ends when that input closes. vLLM's own core process connects to frontends that are
known when it starts; this one listens instead, so that gateways come and go. Nothing else of
the core is changed: requests, outputs and their encoding are vLLM's own, one message per step
and client. This and its ``vllm_`` siblings are the only modules here that touch vLLM's private
surfaces; ``tests/deployments/test_vllm_contract.py`` pins each of them.
"""

import logging
import math
import os
import signal
import sys
import threading
import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from typing import Any

import msgspec
import zmq
from prometheus_client import REGISTRY
from pydantic import ValidationError
from vllm.config import KVTransferConfig, VllmConfig
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.v1.engine import EngineCoreOutputs, EngineCoreRequest, EngineCoreRequestType
from vllm.v1.engine.core import EngineCoreProc, EngineShutdownState
from vllm.v1.engine.utils import EngineZmqAddresses
from vllm.v1.executor import Executor
from vllm.v1.request import RequestStatus
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from deployments import wire
from deployments.engine_order import (
    CHANGES,
    ECHO,
    ERROR_MARK,
    EXCHANGE,
    HEARTBEAT,
    STAGE,
    STUCK,
    Changes,
    EngineOrder,
    Exchange,
)
from deployments.engine_pool import engine_pool
from deployments.messages import EngineCard
from deployments.vllm_metrics import EngineStats
from kv.vllm_copying import block_bytes
from ops.metrics.outlet import Outlet
from ops.metrics.push import Group

logger = logging.getLogger(__name__)

POLL_MS = 1000
TYPES: dict[bytes, type[Exchange | Changes]] = {EXCHANGE: Exchange, CHANGES: Changes}
HELD_UP_S = 3.0  # the input thread looks once a second, unless it is not let
# A model that runs on the processor takes all of it. Gateways and router want little, and
# everybody waits for them: they go first, or their ten milliseconds become thirty.
CPU_NICENESS = 10


class ListeningEngineCore(EngineCoreProc):
    """vLLM's engine core with listening sockets and one more command, the exchange."""

    def __init__(self, order: EngineOrder, vllm_config: VllmConfig) -> None:
        self._order = order
        self._context = zmq.Context()
        self._keys = zmq.curve_keypair()
        self._heard_s: dict[int, float] = {}
        self._stage = ECHO
        self._asked_s = math.inf  # the oldest exchange that is not answered yet came in then
        self._looked_s = time.monotonic()
        super().__init__(
            vllm_config,
            local_client=True,
            handshake_address="",
            executor_class=Executor.get_class(vllm_config),
            # vLLM's one switch for its counts and for the events of requests.
            log_stats=order.has_vllm_metrics
            or not order.engine_args.get("disable_log_stats", True),
        )

    @contextmanager
    def _perform_handshakes(
        self, *_args: Any, **_kwargs: Any
    ) -> Generator[EngineZmqAddresses, None, None]:
        # vLLM fetches its frontends' addresses here; ours come to us.
        yield EngineZmqAddresses(inputs=[], outputs=[])

    def process_input_sockets(
        self,
        input_addresses: list[str],
        coord_input_address: str | None,
        identity: bytes,
        ready_event: threading.Event,
    ) -> None:
        """Input thread: gateways' requests and the replica's exchanges into the input queue."""
        requests, input_end = wire.bind(self._context, zmq.PULL, self._order.host, keys=self._keys)
        self._outputs, output_end = wire.bind(
            self._context, zmq.ROUTER, self._order.host, keys=self._keys
        )
        self.card = self._make_card(input_end, output_end)
        ready_event.set()
        decode_request = MsgpackDecoder(EngineCoreRequest).decode
        decode_ids = MsgpackDecoder(list[str]).decode
        while True:
            if requests.poll(POLL_MS):
                kind, *frames = requests.recv_multipart(copy=False)
                try:
                    self._take_input(kind.bytes, frames, decode_request, decode_ids)
                except Exception:
                    logger.exception("A client's message could not be read and was dropped")
                if requests.poll(0):
                    continue  # a heartbeat may be among what still lies there
            self._end_silent_clients()

    def process_output_sockets(
        self,
        output_paths: list[str],
        coord_output_path: str | None,
        engine_index: int,
    ) -> None:
        """Output thread: each step's outputs to the clients they belong to."""
        encode = MsgpackEncoder().encode
        config, order = self.vllm_config, self._order
        has_news = _has_news
        if order.has_vllm_metrics:
            has_news = EngineStats(config, order.engine_id).keep
        while True:
            item = self.output_queue.get()
            if item == EngineCoreProc.ENGINE_CORE_DEAD:
                return  # clients see the connection close
            client_index, outputs = item
            if isinstance(outputs, EngineCoreOutputs) and not has_news(outputs):
                continue
            frames = encode(outputs) if isinstance(outputs, EngineCoreOutputs) else [outputs]
            self._outputs.send_multipart([wire.client_identity(client_index), *frames], copy=False)

    def _take_input(
        self, kind: bytes, frames: list[Any], decode_request: Any, decode_ids: Any
    ) -> None:
        if kind == HEARTBEAT:
            client_index = int.from_bytes(frames[0].bytes, "little")
            self._heard_s[client_index] = time.monotonic()
            self.output_queue.put_nowait((client_index, self._present_stage()))
            return
        if kind == STAGE:
            self._enter_stage(frames[0].bytes)
            return
        if kind in TYPES:
            message = msgspec.msgpack.decode(frames[0].buffer, type=TYPES[kind])
            if kind == EXCHANGE:
                self._asked_s = min(self._asked_s, time.monotonic())
            self.input_queue.put_nowait((EngineCoreRequestType.UTILITY, message))
            return
        if kind == EngineCoreRequestType.ADD.value:
            self._take_request(decode_request(frames))
        elif kind == EngineCoreRequestType.ABORT.value:
            request_ids = decode_ids(frames)
            self.aborts_queue.put_nowait(request_ids)
            self.input_queue.put_nowait((EngineCoreRequestType.ABORT, request_ids))
        else:
            # What else vLLM's core understands is for its own frontend, not for whoever connects.
            logger.warning("A message of the unknown kind %r was dropped", kind)

    def _enter_stage(self, stage: bytes) -> None:
        # At once, and again with every heartbeat: who connects later learns it too.
        self._stage = stage
        for client_index in self._heard_s:
            self.output_queue.put_nowait((client_index, stage))

    def _present_stage(self) -> bytes:
        is_stuck = time.monotonic() - self._asked_s > self._order.stuck_s
        return STUCK if is_stuck and self._stage == ECHO else self._stage

    def _take_request(self, request: EngineCoreRequest) -> None:
        self._heard_s.setdefault(request.client_index, time.monotonic())
        try:
            item = self.preprocess_add_request(request)
        except Exception:  # noqa: BLE001  (whatever it is, it is this one request's)
            # Unless the engine has been told to end, and its own parts have: then nobody answers,
            # and to a gateway that hears nothing more the request is to go on elsewhere.
            if self.shutdown_state is EngineShutdownState.RUNNING:
                self._handle_request_preproc_error(request)
            return
        self.input_queue.put_nowait((EngineCoreRequestType.ADD, item))

    def _handle_client_request(self, request_type: EngineCoreRequestType, request: Any) -> None:
        if isinstance(request, Exchange):
            self._answer(request)
        elif isinstance(request, Changes):
            self.scheduler.set_priorities(request.priorities)
            self.scheduler.pin_turns(request.pins_s)
        elif isinstance(request, _SilentClient):
            self._end_client(request.client_index)
        else:
            super()._handle_client_request(request_type, request)

    def _handle_shutdown(self) -> bool:
        # vLLM would tell the gateways that what is left was aborted, and their clients that they
        # have all. To a gateway that hears nothing more it is to go on elsewhere.
        return self.shutdown_state is EngineShutdownState.RUNNING

    def _answer(self, exchange: Exchange) -> None:
        self._asked_s = math.inf
        progress = self.scheduler.take_progress(exchange.is_full)
        self.output_queue.put_nowait((exchange.client_index, msgspec.msgpack.encode(progress)))

    def _end_silent_clients(self) -> None:
        now = time.monotonic()
        listened_s, self._looked_s = self._looked_s, now
        if now - listened_s > HELD_UP_S:
            # This process was held up, and perhaps its clients with it: everybody gets a new term.
            self._heard_s = dict.fromkeys(self._heard_s, now)
            return
        for client_index, heard_s in list(self._heard_s.items()):
            if now - heard_s > self._order.client_silence_s:
                del self._heard_s[client_index]
                self.input_queue.put_nowait(
                    (EngineCoreRequestType.UTILITY, _SilentClient(client_index))
                )

    def _end_client(self, client_index: int) -> None:
        """Abort what a vanished gateway left behind, and tell it, should it only have been slow."""
        left = [
            request_id
            for request_id, request in self.scheduler.requests.items()
            if request.client_index == client_index
        ]
        if left:
            logger.warning("A gateway went silent: %d of its requests are aborted", len(left))
            aborted = self.scheduler.finish_requests(left, RequestStatus.FINISHED_ABORTED)
            self._send_abort_outputs(aborted)

    def _make_card(self, input_end: wire.Endpoint, output_end: wire.Endpoint) -> EngineCard:
        ready = self._make_ready_response()
        return EngineCard(
            engine_id=self._order.engine_id,
            input_address=input_end.address,
            output_address=output_end.address,
            public_key=input_end.public_key,
            ready=msgspec.msgpack.encode(ready),
            max_num_seqs=ready.max_num_seqs,
            num_blocks=ready.num_gpu_blocks,
            block_tokens=ready.block_size,
            block_bytes=self._block_bytes(),
        )

    def _block_bytes(self) -> int:
        """What a swapped block moves; without anyone to swap nothing does."""
        if self.vllm_config.kv_transfer_config is None:
            return 0
        world_size: int = self.vllm_config.parallel_config.world_size
        return block_bytes(self.scheduler.kv_cache_config) * world_size


class _SilentClient(msgspec.Struct, frozen=True):
    client_index: int


def _has_news(outputs: EngineCoreOutputs) -> bool:
    """Whether there is more in ``outputs`` than vLLM's counts, which are taken out.

    Where a step has no outputs at all, vLLM sends its counts to client 0, here the replica.
    """
    outputs.scheduler_stats = None
    return bool(outputs.outputs or outputs.finished_requests or outputs.utility_output)


def make_engine_args(settings: Mapping[str, Any]) -> AsyncEngineArgs:
    """Build vLLM's engine arguments from our settings; gateway and engine do it alike.

    Raises:
        TypeError: a setting that vLLM does not know.
    """
    arguments = dict(settings)
    if (transfer := arguments.get("kv_transfer_config")) is not None:
        arguments["kv_transfer_config"] = KVTransferConfig(**transfer)
    return AsyncEngineArgs(**arguments)


def unknown_engine_args(settings: Mapping[str, Any]) -> list[str]:
    """Those that vLLM's engine has no argument for."""
    return sorted(settings.keys() - {field.name for field in fields(AsyncEngineArgs)})


def run(order: EngineOrder) -> None:
    """Build the engine, tell the parent where it listens, and step until told to stop."""
    with engine_pool(order) as settings:
        _run(order, make_engine_args(settings).create_engine_config())


def _run(order: EngineOrder, vllm_config: VllmConfig) -> None:
    if vllm_config.device_config.device_type == "cpu":
        os.nice(CPU_NICENESS)  # workers inherit it
    core = ListeningEngineCore(order, vllm_config)

    def stop(_signal: int, _frame: Any) -> None:
        core.shutdown_state = EngineShutdownState.REQUESTED
        # A signal handler must not take the queue's lock: let a thread wake the loop.
        threading.Thread(
            target=core.input_queue.put_nowait,
            args=((EngineCoreRequestType.WAKEUP, None),),
        ).start()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's business
    _tell_parent(order.card_fd, core.card)
    group = Group("engine", order.engine_id, order.application)
    outlet = Outlet(REGISTRY, order.outlets, group, order.host)
    outlet.open()
    try:
        core.run_busy_loop()
    finally:
        outlet.close()
        core.shutdown()


def _tell_parent(card_fd: int, card: EngineCard) -> None:
    with os.fdopen(card_fd, "wb") as line:
        line.write(msgspec.msgpack.encode(card))


def one_sentence(error: Exception) -> str:
    """The error on one line; of a refused setting only what is wrong with it."""
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        reason = str(first["msg"]).removeprefix("Value error, ")
        text = f"{where}: {reason}" if where else reason
    else:
        text = f"{type(error).__name__}: {error}"
    return " ".join(text.split())


def _end_with_parent() -> None:
    """Leave when the parent's end of our input closes: an orphan would hold the GPU."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(0)


def main() -> None:
    order = msgspec.json.decode(sys.stdin.buffer.readline(), type=EngineOrder)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    try:
        run(order)
    except SystemExit:
        pass
    except Exception as error:
        logger.exception("The engine ended")
        print(f"{ERROR_MARK}{one_sentence(error)}", file=sys.stderr, flush=True)
        os._exit(1)


if __name__ == "__main__":
    main()
