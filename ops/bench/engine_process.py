"""An engine in a process of its own, and the line to it: a message per line each way.

Owns starting the process with the arguments and the environment that our settings stand for. The
module that is run reads vLLM's arguments as one line of JSON on its standard input, then messages,
and answers each with a line on its standard output.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import IO, Any, Generic, TypeVar

import msgspec

from app.devices import has_cuda
from app.engine_settings import engine_args, engine_environment
from app.models import resolve_model
from app.settings import AppArgs
from ops.bench.errors import EngineFailedError

Answer = TypeVar("Answer")


class EngineProcess(Generic[Answer]):
    """The line to one engine process."""

    def __init__(
        self,
        mode: str,
        process: subprocess.Popen[bytes],
        log: IO[bytes],
        answer_type: type[Answer],
    ) -> None:
        self._mode, self._process, self._log = mode, process, log
        self._answer_type = answer_type

    def ask(self, message: Any) -> Answer:
        """Have a message answered; the first one also waits for the engine to start.

        Raises:
            EngineFailedError: the process ended instead.
        """
        self.tell(message)
        assert self._process.stdout
        if not (line := self._process.stdout.readline()):
            raise EngineFailedError(self._mode, self._last_words())
        return msgspec.json.decode(line, type=self._answer_type)

    def tell(self, message: Any) -> None:
        assert self._process.stdin
        try:
            self._process.stdin.write(msgspec.json.encode(message) + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            # What could not be sent would be tried again on leaving, and that error hide this one.
            with suppress(BrokenPipeError):
                self._process.stdin.close()
            raise EngineFailedError(self._mode, self._last_words()) from None

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "it said nothing"


def on_cuda(settings: AppArgs) -> bool:
    """Whether the settings' engine runs on a GPU of this machine."""
    return settings.device == "cuda" or (settings.device == "auto" and has_cuda())


def given_args(settings: AppArgs) -> dict[str, Any]:
    """What vLLM is given for ``settings`` in `fastswitch serve`."""
    return engine_args(settings, resolve_model(settings.model), on_cuda=on_cuda(settings))


@contextmanager
def running_engine(
    mode: str,
    settings: AppArgs,
    arguments: Mapping[str, Any],
    module: str,
    answer_type: type[Answer],
) -> Iterator[EngineProcess[Answer]]:
    """``module`` in a process with these arguments of vLLM's; it ends on leaving."""
    environment = {
        **os.environ,
        **engine_environment(settings, on_cuda=on_cuda(settings), num_cores=os.cpu_count() or 1),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            [sys.executable, "-m", module],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        ) as process,
    ):
        try:
            engine = EngineProcess(mode, process, log, answer_type)
            engine.tell(arguments)
            yield engine
        finally:
            process.kill()
