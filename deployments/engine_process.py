"""The engine process as its parent sees it: started, ready, alive, stopped.

Owns the child process and its pipes. Knows nothing of requests or the router. The child ends
by itself when our end of its standard input closes, so a parent killed outright leaves none.
"""

import asyncio
import contextlib
import os
import sys
from collections import deque
from collections.abc import Mapping

import msgspec

from deployments.engine_order import ERROR_MARK, EngineOrder
from deployments.errors import EngineStartError
from deployments.messages import EngineCard

MODULE = "deployments.vllm_engine"
# vLLM lets these overrule its engine arguments: they may be set for another vLLM of the machine.
OVERRULING = frozenset({"VLLM_CPU_KVCACHE_SPACE"})
STOP_S = 10.0
LOG_PIECE_BYTES = 2**16


class EngineProcess:
    """One engine process. Started by ``ready``, which also waits for it."""

    def __init__(self, order: EngineOrder, environment: Mapping[str, str]) -> None:
        """``environment`` is added to this process's own."""
        self.engine_id = order.engine_id
        self._order = order
        inherited = {name: os.environ[name] for name in os.environ.keys() - OVERRULING}
        self._environment = {**inherited, **environment}
        self._process: asyncio.subprocess.Process | None = None
        self._log_tail: deque[str] = deque(maxlen=40)

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    async def ready(self) -> EngineCard:
        """Start the process and wait for its card.

        Raises:
            EngineStartError: it ended first; the message carries its own reason.
        """
        card_end, child_end = os.pipe()
        process = self._process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            MODULE,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=self._environment,
            pass_fds=(child_end,),
        )
        os.close(child_end)
        assert process.stdin is not None
        assert process.stdout is not None
        self._log_reader = asyncio.create_task(self._pass_on_log(process.stdout))
        order = msgspec.structs.replace(self._order, card_fd=child_end)
        process.stdin.write(msgspec.json.encode(order) + b"\n")
        payload = await _read_all(card_end)
        if not payload:
            status = await process.wait()
            await self._log_reader
            raise EngineStartError(self.engine_id, status, self._reason())
        return msgspec.msgpack.decode(payload, type=EngineCard)

    @property
    def is_alive(self) -> bool:
        return self._process is not None and self._process.returncode is None

    def check_alive(self) -> None:
        """Raises EngineStartError once the process has ended."""
        if self._process is not None and self._process.returncode is not None:
            raise EngineStartError(self.engine_id, self._process.returncode, self._reason())

    async def stop(self) -> None:
        """Ask the process to end, insist after a while."""
        if self._process is None or not self.is_alive:
            return
        self._process.terminate()
        try:
            async with asyncio.timeout(STOP_S):
                await self._process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()

    def _reason(self) -> str:
        for line in reversed(self._log_tail):
            if line.startswith(ERROR_MARK):
                return line.removeprefix(ERROR_MARK)
        return self._log_tail[-1] if self._log_tail else "it said nothing"

    async def _pass_on_log(self, stream: asyncio.StreamReader) -> None:
        # In pieces: vLLM prints lines of any length when it dies, and a full pipe would stop it.
        rest = b""
        while piece := await stream.read(LOG_PIECE_BYTES):
            *lines, rest = (rest + piece).split(b"\n")
            rest = rest[-LOG_PIECE_BYTES:]
            for line in lines:
                self._note_log(line)
        if rest:
            self._note_log(rest)

    def _note_log(self, line: bytes) -> None:
        text = line.decode(errors="replace").rstrip()
        self._log_tail.append(text)
        print(text, file=sys.stderr, flush=True)


async def _read_all(descriptor: int) -> bytes:
    """What comes through a pipe until its other end closes."""
    reader = asyncio.StreamReader()
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), os.fdopen(descriptor, "rb")
    )
    try:
        return await reader.read()
    finally:
        transport.close()
