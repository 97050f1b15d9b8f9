"""A gateway's lines to the engines: one per engine, up when both ways are proven.

Owns sockets and the frames' way through them, and at which stage of its way out an engine says it
is; knows nothing of what the other frames say. A line that breaks is reported once and closed for
good: a restarted engine is a new engine, and one that was only out of reach gets a new line.
"""

import asyncio
import logging
import math
import time
from collections.abc import Callable, Sequence

import zmq
import zmq.asyncio
from zmq.utils.monitor import parse_monitor_message

from deployments import wire
from deployments.engine_order import ECHO, HEARTBEAT, PARTING, STAGES, STUCK
from deployments.messages import EngineCard

logger = logging.getLogger("ray.serve")

KNOCK_S = 0.2
HEARTBEAT_S = 1.0


class EngineLink:
    """Requests to one engine, its outputs back.

    To the engine each line is a client of its own: of what was sent on an earlier one nothing comes
    back on this one, and the engine ends it when it has heard nothing on that one for a while.
    ``on_frames(engine_id, frames)`` gets each message of outputs. ``on_parting(engine_id)`` is
    called each time that the engine says so, ``on_lost(engine_id)`` once, when the connection
    breaks after it was up. All are called from the event loop.
    """

    def __init__(
        self,
        card: EngineCard,
        client_index: int,
        on_frames: Callable[[str, Sequence[zmq.Frame]], None],
        on_lost: Callable[[str], None],
        on_parting: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.card = card
        self.client_index = client_index
        self.is_up = False
        self.up_since_s = math.inf  # by the monotonic clock
        self._stage = ECHO
        self._client = client_index.to_bytes(8, "little")
        self._on_frames, self._on_lost, self._on_parting = on_frames, on_lost, on_parting
        context = zmq.asyncio.Context.instance()
        self._input = wire.connect(
            context, zmq.PUSH, wire.Endpoint(card.input_address, card.public_key)
        )
        self._output = wire.connect(
            context,
            zmq.DEALER,
            wire.Endpoint(card.output_address, card.public_key),
            identity=wire.client_identity(client_index),
        )
        self._monitor = self._output.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._tasks = [
            asyncio.create_task(task) for task in (self._read(), self._beat(), self._watch())
        ]

    @property
    def is_at_work(self) -> bool:
        """Whether the engine's loop goes round; only then do its tokens come."""
        return self.is_up and self._stage != STUCK

    @property
    def takes_requests(self) -> bool:
        return self.is_up and self._stage == ECHO

    async def send(self, frames: Sequence[bytes]) -> None:
        await self._input.send_multipart(frames, copy=False)

    def check_alive(self) -> None:
        """Raises what ended a task of this line, if anything did."""
        for task in self._tasks:
            if task.done() and not task.cancelled():
                task.result()

    def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        self._output.disable_monitor()
        self._monitor.close()
        self._input.close()
        self._output.close()

    async def _read(self) -> None:
        while True:
            frames = await self._output.recv_multipart(copy=False)
            if len(frames) == 1 and frames[0].bytes in STAGES:
                self._note_stage(frames[0].bytes)
            else:
                self._on_frames(self.card.engine_id, frames)

    def _note_stage(self, stage: bytes) -> None:
        if not self.is_up:
            self.up_since_s = time.monotonic()
        self._stage, self.is_up = stage, True
        if stage == PARTING:
            self._on_parting(self.card.engine_id)

    async def _beat(self) -> None:
        while True:
            await self._input.send_multipart([HEARTBEAT, self._client])
            await asyncio.sleep(HEARTBEAT_S if self.is_up else KNOCK_S)

    async def _watch(self) -> None:
        while True:
            event = parse_monitor_message(await self._monitor.recv_multipart())
            if event["event"] == zmq.EVENT_DISCONNECTED and self.is_up:
                self.is_up = False
                logger.warning("The connection to engine %s broke", self.card.engine_id)
                self._on_lost(self.card.engine_id)
                return
