"""A gateway's side of a real engine, by hand: requests and outputs as vLLM encodes them."""

import time
from collections import defaultdict
from collections.abc import Sequence
from itertools import count
from types import TracebackType
from typing import Any, Self

import zmq
from vllm import SamplingParams
from vllm.v1.engine import (
    EngineCoreEvent,
    EngineCoreOutputs,
    EngineCoreRequest,
    EngineCoreRequestType,
    FinishReason,
)
from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

from deployments.engine_links import EngineLink
from deployments.messages import EngineCard
from tests.deployments.stand_ins import until

PROMPT = list(range(40, 60))
_indices = count(1)


class EngineClient:
    """One client of an engine, in an ``async with``; all that it is sent is kept."""

    def __init__(self, card: EngineCard, link_class: type[EngineLink] = EngineLink) -> None:
        self._card, self._link_class = card, link_class
        self.client_index = next(_indices)
        self.tokens: defaultdict[str, list[int]] = defaultdict(list)
        self.ends: dict[str, FinishReason] = {}
        self.events: defaultdict[str, list[EngineCoreEvent]] = defaultdict(list)
        self._encode = MsgpackEncoder().encode
        self._decode = MsgpackDecoder(EngineCoreOutputs).decode

    async def __aenter__(self) -> Self:
        self.link = self._link_class(self._card, self.client_index, self._take, lambda _: None)
        await until(lambda: self.link.is_up)
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        left = [request_id for request_id in self.tokens if request_id not in self.ends]
        if left:
            await self.abort(*left)
        self.link.close()

    async def add(
        self, request_id: str, prompt: Sequence[int] = PROMPT, *, priority: int = 0, **params: Any
    ) -> None:
        await self.send(
            EngineCoreRequestType.ADD.value,
            self.request(request_id, prompt, priority=priority, **params),
        )

    def request(
        self, request_id: str, prompt: Sequence[int] = PROMPT, *, priority: int = 0, **params: Any
    ) -> EngineCoreRequest:
        greedy = {"temperature": 0.0, "ignore_eos": True, "max_tokens": 8}
        self.tokens[request_id] = []
        return EngineCoreRequest(
            request_id=request_id,
            prompt_token_ids=list(prompt),
            mm_features=None,
            sampling_params=SamplingParams(**{**greedy, **params}),
            pooling_params=None,
            arrival_time=time.time(),
            lora_request=None,
            cache_salt=None,
            data_parallel_rank=None,
            client_index=self.client_index,
            priority=priority,
        )

    async def abort(self, *request_ids: str) -> None:
        await self.send(EngineCoreRequestType.ABORT.value, list(request_ids))

    async def send(self, kind: bytes, content: object) -> None:
        await self.link.send([kind, *self._encode(content)])

    async def end_of(self, request_id: str) -> FinishReason:
        """How a request ended, once it has."""
        await until(lambda: request_id in self.ends)
        return self.ends[request_id]

    def _take(self, _engine_id: str, frames: Sequence[zmq.Frame]) -> None:
        for output in self._decode(frames).outputs:
            self.tokens[output.request_id] += output.new_token_ids
            self.events[output.request_id] += output.events or []
            if output.finish_reason is not None:
                self.ends[output.request_id] = output.finish_reason
