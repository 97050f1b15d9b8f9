"""FleetClient: to vLLM's frontend it is one engine core, behind it is the whole fleet.

Owns which engine has which of this gateway's requests: asks for a placement, sends the request
there in vLLM's own encoding, merges the engines' outputs, aborts, and sends the requests of an
engine that is gone to another one. Leaves to ``continuation`` and ``vllm_continuation`` how an
answer goes on in the middle, and the choice of engine and the sockets to ``fleet_view``.
"""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Coroutine, Sequence
from hashlib import sha256
from http import HTTPStatus
from random import SystemRandom
from typing import Protocol

import msgspec
import zmq
from vllm.config import VllmConfig
from vllm.exceptions import GracefulHTTPError
from vllm.tasks import SupportedTask
from vllm.v1.engine import (
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    EngineCoreRequestType,
    FinishReason,
)
from vllm.v1.engine.core_client import EngineCoreClient
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from deployments.admissions import (
    AdmissionRecord,
    Denial,
    bad_request,
    over_limit,
    unavailable,
)
from deployments.continuation import Transcript, Way
from deployments.errors import NoEngineLeftError, ReplayDivergedError
from deployments.fleet_view import FleetView
from deployments.messages import Admit
from deployments.prefixes import fingerprints
from deployments.vllm_continuation import (
    CARRIED_ARG,
    continued,
    engine_wide,
    make_repeatable,
    make_seamless,
    way_of,
)
from deployments.vllm_watch import RequestWatch
from ops.metrics.request_metrics import RequestMeter, RequestMetrics
from scheduler.admission import PRIORITY_BOUND, AdmitRequest, Wishes
from scheduler.errors import QuotaExceededError

logger = logging.getLogger("ray.serve")

TENANT_ARG = "fastswitch_tenant"  # where the engine's scheduler looks for the tenant

# The ends of an answer by itself; the others are the engine's doing.
RETRY_S = 5.0  # while no engine would take a request that has to go on
OWN_ENDS = frozenset({FinishReason.STOP, FinishReason.LENGTH, FinishReason.REPETITION})


class Caller(Protocol):
    """Who sent the request that is being handled."""

    @property
    def tenant(self) -> str: ...

    @property
    def conversation(self) -> str | None: ...

    @property
    def wishes(self) -> Wishes: ...

    @property
    def admission(self) -> AdmissionRecord: ...


class EngineLostError(GracefulHTTPError):
    """A request's engine is gone, or none is there to take it. HTTP 503: trying again may help."""

    def __init__(self, message: str) -> None:
        super().__init__(message, HTTPStatus.SERVICE_UNAVAILABLE)


class DeniedError(GracefulHTTPError):
    """The fleet does not take a request. What the client is told is in its admission record."""

    def __init__(self, message: str, http_status: HTTPStatus) -> None:
        super().__init__(message, http_status)
        self.args = (message, http_status)  # by which it is pickled

    def __str__(self) -> str:
        return self.message


class OwnedRequest:
    """A request of this gateway and the engine that has it; None while it looks for one."""

    __slots__ = (
        *("admission", "admit", "engine_id", "is_continued", "lost_engines"),
        *("meter", "request", "transcript", "way"),
    )

    def __init__(
        self,
        request: EngineCoreRequest,
        admit: Admit,
        admission: AdmissionRecord,
        meter: RequestMeter,
        way: Way,
    ) -> None:
        self.request = request
        self.admit = admit
        self.admission = admission
        self.meter = meter
        self.way = way
        self.transcript = Transcript()
        self.engine_id: str | None = None
        self.lost_engines: list[str] = []  # those that have had it, the last one last
        self.is_continued = False  # its engine was sent it in the middle of its answer

    @property
    def can_go_on(self) -> bool:
        """Whether another engine can take it from here."""
        return self.way is not Way.END or len(self.transcript) == 0

    @property
    def goes_on_as(self) -> str:
        """What became of its answer where it was sent to another engine, in a metric's word."""
        if not self.is_continued:
            return "begun"
        return "replayed" if self.way is Way.REPLAY else "continued"

    def lose_engine(self) -> None:
        """Be ready for another engine, from where the lost one has left off."""
        assert self.engine_id is not None
        self.admit = Admit(
            msgspec.structs.replace(self.admit.request, output_done=len(self.transcript))
        )
        self.lost_engines.append(self.engine_id)
        self.engine_id = None
        self.is_continued = len(self.transcript) > 0
        if self.way is Way.REPLAY:
            self.transcript.rewind()

    def to_send(self) -> EngineCoreRequest:
        """What an engine gets that takes the request now."""
        if self.is_continued:
            return continued(self.request, self.transcript.tokens, self.way)
        return self.request


class FleetClient(EngineCoreClient):
    """vLLM's engine client interface over many engines.

    Every request is owned by at most one engine, and its outputs come in that engine's order.
    """

    def __init__(
        self,
        vllm_config: VllmConfig,
        fleet: FleetView,
        current_caller: Callable[[], Caller],
        metrics: RequestMetrics,
        continuation_timeout_s: float,
        watch: RequestWatch | None = None,
    ) -> None:
        self.vllm_config = vllm_config
        self.engine_ranks_managed = [0]
        self._fleet = fleet
        self._current_caller = current_caller
        self._metrics = metrics
        self._continuation_timeout_s = continuation_timeout_s
        self._engines_ask = engine_wide(vllm_config)
        self._random = SystemRandom()
        self._watch = watch or RequestWatch()
        self._owned: dict[str, OwnedRequest] = {}
        self._outputs: asyncio.Queue[EngineCoreOutputs] = asyncio.Queue()
        self._encode = MsgpackEncoder().encode
        self._decode = MsgpackDecoder(EngineCoreOutputs).decode
        self._tasks: set[asyncio.Task[None]] = set()
        self.fail_request: Callable[[str, Exception], None]  # set by the frontend
        fleet.on_frames = self._take_frames
        fleet.on_lost, fleet.on_parting = self._engine_lost, self._engine_parts
        fleet.on_placing = self._watch.placing

    @property
    def num_open(self) -> int:
        return len(self._owned)

    async def add_request_async(self, request: EngineCoreRequest) -> None:
        """Place ``request`` and send it. Cancelled halfway, it leaves nothing behind.

        Raises:
            EngineLostError: no engine can be reached.
            DeniedError: its tenant is past a limit of its own, or its priority is none.
        """
        caller = self._current_caller()
        with caller.admission.asking():
            admit = self._make_admit(request, caller)
            tenant = admit.request.tenant
            self._label(request, tenant)
            way = way_of(request, self._engines_ask)
            if way is Way.REPLAY:
                make_repeatable(request, self._random)
            admission = caller.admission
            meter = self._metrics.started(tenant, admit.request.prompt_tokens, admission.arrived_s)
            owned = OwnedRequest(request, admit, admission, meter, way)
            self._owned[request.request_id] = owned
            self._watch.started(request, admit.request)
            try:
                if self._fleet.num_up == 0:
                    await self._send_somewhere(owned)  # or say at once that there is none
                else:
                    await self._send_when_possible(owned)
            except NoEngineLeftError as error:
                self._disown(request.request_id, "error")
                caller.admission.deny(unavailable(str(error), "rejected-no-endpoints"))
                raise EngineLostError(str(error)) from error
            except QuotaExceededError as error:
                meter.rejected(error.limit)
                self._disown(request.request_id, "rejected")
                raise _denied(caller, over_limit(error)) from error
            except BaseException:
                # Cancelled, most likely: the client left while its request was on its way.
                await self.abort_requests_async([request.request_id])
                raise

    def note_overload(self, message: str) -> None:
        """The request in whose context this runs finds the gateway full."""
        self._current_caller().admission.deny(unavailable(message, "rejected-saturated"))

    def has_denied(self) -> bool:
        """Whether this runs for a request that the fleet does not take."""
        try:
            return self._current_caller().admission.denial is not None
        except LookupError:
            return False  # for no request at all

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        by_engine: defaultdict[str, list[str]] = defaultdict(list)
        for request_id in request_ids:
            owned = self._disown(request_id, "abort")
            if owned is not None and owned.engine_id is not None:
                by_engine[owned.engine_id].append(request_id)
        for engine_id, ids in by_engine.items():
            await self._abort_on(engine_id, ids)

    async def get_output_async(self) -> EngineCoreOutputs:
        if not self._outputs.empty():
            # Taking from a queue that holds something does not wait, and vLLM takes in a loop: a
            # gateway that is behind would let no new request in until it has caught up.
            await asyncio.sleep(0)
        return await self._outputs.get()

    async def get_supported_tasks_async(self) -> tuple[SupportedTask, ...]:
        return ("generate",)

    async def reset_mm_cache_async(self) -> None:
        """Nothing to reset: engines keep their own multimodal caches."""

    def shutdown(self, timeout: float | None = None) -> None:
        """Engines outlive their gateways; there is nothing of theirs to shut down here."""

    def _make_admit(self, request: EngineCoreRequest, caller: Caller) -> Admit:
        if abs(request.priority) > PRIORITY_BOUND:
            allowed = f"a whole number from -{PRIORITY_BOUND} to {PRIORITY_BOUND}"
            message = f"priority {request.priority} is not allowed: {allowed}"
            raise _denied(caller, bad_request(message))
        params = request.sampling_params
        prompt_tokens = len(request.prompt_token_ids or ())
        max_output_tokens = (params.max_tokens or 0) if params else 0
        return Admit(
            AdmitRequest(
                request_id=request.request_id,
                tenant=caller.tenant,
                conversation=caller.conversation or request.session_id,
                prompt_tokens=prompt_tokens,
                max_output_tokens=max_output_tokens,
                arrival_s=time.time() - (time.monotonic() - caller.admission.arrived_s),
                wishes=msgspec.structs.replace(caller.wishes, priority=request.priority),
                # vLLM fills in what the model's length leaves where the sender sets no limit.
                is_open_ended=prompt_tokens + max_output_tokens
                >= self.vllm_config.model_config.max_model_len,
                prefixes=fingerprints(_tenant_salt(caller.tenant), request.prompt_token_ids or ()),
            )
        )

    def _label(self, request: EngineCoreRequest, tenant: str) -> None:
        """Write into the request what the engine must know, over whatever a client put there."""
        request.cache_salt = _tenant_salt(tenant) + (request.cache_salt or "")
        if request.sampling_params is not None:
            extra = {**(request.sampling_params.extra_args or {}), TENANT_ARG: tenant}
            extra.pop(CARRIED_ARG, None)
            request.sampling_params.extra_args = extra

    async def _send_somewhere(self, owned: OwnedRequest) -> None:
        avoid = self._fleet.still_avoided(owned.lost_engines)
        admit = msgspec.structs.replace(owned.admit, avoid=avoid)
        link, priority = await self._fleet.place(admit, owned.admission.in_line)
        owned.meter.placed(time.monotonic())
        request = owned.to_send()
        if self._owned.get(request.request_id) is not owned:
            # Aborted while it waited for its place: no engine shall work for nobody.
            self._fleet.closed(link.card.engine_id)
            await self._fleet.cancel(request.request_id)
            return
        owned.engine_id = link.card.engine_id
        request.client_index = link.client_index
        request.priority = priority
        request.session_id = owned.admit.request.conversation
        self._watch.placed(request.request_id, link.card.engine_id, priority)
        await link.send([EngineCoreRequestType.ADD.value, *self._encode(request)])
        if owned.lost_engines:
            owned.meter.moved(owned.goes_on_as)

    async def _abort_on(self, engine_id: str, request_ids: list[str]) -> None:
        link = self._fleet.link(engine_id)
        if link is not None:
            await link.send([EngineCoreRequestType.ABORT.value, *self._encode(request_ids)])

    def _take_frames(self, engine_id: str, frames: Sequence[zmq.Frame]) -> None:
        outputs: EngineCoreOutputs = self._decode(frames)
        now_s = time.monotonic()
        self._watch.heard(engine_id, outputs, now_s)
        outputs.outputs = [
            output for output in outputs.outputs if self._take(engine_id, output, now_s)
        ]
        if outputs.outputs:
            self._outputs.put_nowait(outputs)

    def _take(self, engine_id: str, output: EngineCoreOutput, now_s: float) -> bool:
        """Take note of what a request has put out; whether the frontend is to see it."""
        owned = self._owned.get(output.request_id)
        if owned is None:
            return True  # aborted meanwhile, and the frontend knows
        if owned.engine_id != engine_id:
            return False  # another engine has taken it up since
        is_end = output.finish_reason in OWN_ENDS
        try:
            num_known = owned.transcript.take(output.new_token_ids, is_end=is_end)
        except ReplayDivergedError as error:
            self._start(self._abort_on(engine_id, [output.request_id]))
            self._fail(owned, f"its answer could not be repeated elsewhere ({error})")
            return False
        if owned.is_continued and not make_seamless(output, num_known):
            return False
        owned.meter.tokens(len(output.new_token_ids), now_s)
        if output.finish_reason is not None:
            self._disown(output.request_id, str(output.finish_reason))
        return True

    def _disown(self, request_id: str, outcome: str) -> OwnedRequest | None:
        owned = self._owned.pop(request_id, None)
        if owned is not None:
            owned.meter.finished(outcome)
            self._watch.finished(request_id, outcome, len(owned.transcript))
            if owned.engine_id is not None:
                self._fleet.closed(owned.engine_id)
        return owned

    def _engine_lost(self, engine_id: str) -> None:
        """Have the engine's requests go on elsewhere, each in its way."""
        lost = [owned for owned in self._owned.values() if owned.engine_id == engine_id]
        logger.warning("Engine %s is gone with %d of our requests", engine_id, len(lost))
        self._watch.lost(engine_id, [owned.request.request_id for owned in lost])
        for owned in lost:
            owned.lose_engine()
            if owned.can_go_on:
                self._start(self._move(owned))
            else:
                self._fail(owned, "it cannot go on elsewhere in the middle of its answer")

    def _engine_parts(self, engine_id: str) -> None:
        """Have the engine's requests go on elsewhere before it ends; those that cannot stay."""
        moved = [
            owned
            for owned in self._owned.values()
            if owned.engine_id == engine_id and owned.can_go_on
        ]
        if not moved:
            return
        logger.info("Engine %s goes; %d of our requests go on elsewhere", engine_id, len(moved))
        moved_ids = [owned.request.request_id for owned in moved]
        self._start(self._abort_on(engine_id, moved_ids))
        self._watch.lost(engine_id, moved_ids)
        for owned in moved:
            owned.lose_engine()
            self._fleet.closed(engine_id)
            self._start(self._move(owned))

    async def _move(self, owned: OwnedRequest) -> None:
        """Send a request to another engine, or end it with an error: nobody else looks after it."""
        try:
            await self._send_when_possible(owned)
        except NoEngineLeftError:
            waited_s = self._continuation_timeout_s
            self._fail(owned, f"no other engine was ready within {waited_s:g} s")
        except Exception:
            logger.exception("Request %s could not be moved", owned.request.request_id)
            self._fail(owned, "it could not be sent to another engine")

    async def _send_when_possible(self, owned: OwnedRequest) -> None:
        """Send a request somewhere; waits for an engine while there is none, but not for ever.

        Raises:
            NoEngineLeftError: none has come up in time.
        """
        until_s: float | None = None
        while True:
            try:
                await self._send_somewhere(owned)
            except NoEngineLeftError:
                now_s = time.monotonic()
                until_s = until_s or now_s + self._continuation_timeout_s
                if now_s >= until_s:
                    raise
                # One that is there already may come to count as back.
                if await self._fleet.engine_comes_up(min(until_s - now_s, RETRY_S)):
                    until_s = None
            else:
                return

    def _fail(self, owned: OwnedRequest, why: str) -> None:
        """End a request whose engine was lost with an error, unless its client has left."""
        request_id = owned.request.request_id
        if self._disown(request_id, "error") is None:
            return
        lost_engine_id = owned.lost_engines[-1]
        self.fail_request(
            request_id,
            EngineLostError(
                f"{lost_engine_id}, which was serving this request, stopped, and {why}; "
                "please send it again"
            ),
        )

    def _start(self, work: Coroutine[None, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _denied(caller: Caller, denial: Denial) -> DeniedError:
    caller.admission.deny(denial)
    return DeniedError(denial.message, denial.status)


def _tenant_salt(tenant: str) -> str:
    """What keeps a tenant's cached KV its own: unseen and untimed by others (CVE-2025-46570).

    Of fixed length, so that a tenant's name and a salt of the client's cannot run together.
    """
    return sha256(tenant.encode()).hexdigest()[:32]
