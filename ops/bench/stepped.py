"""A vLLM engine that is stepped by hand, in a process of its own: its trials and the line to it.

Owns starting the process with the arguments and the environment that our settings stand for. What
happens inside stands in ``ops.bench.stepped_engine``, which alone imports vLLM.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any

import msgspec

from app.devices import has_cuda
from app.engine_settings import engine_args, engine_environment
from app.models import resolve_model
from app.settings import AppArgs
from ops.bench.errors import EngineFailedError
from ops.bench.workload import WorkItem

MODULE = "ops.bench.stepped_engine"


class Trial(msgspec.Struct, frozen=True):
    """Start ``background``, step ``lead_steps`` times, send ``urgent``, step until all are done."""

    background: list[WorkItem]
    lead_steps: int
    urgent: WorkItem


class TrialResult(msgspec.Struct, frozen=True):
    """Counted from the moment the urgent request was sent; the last of ``outputs`` is its own."""

    first_token_steps: int
    first_token_s: float
    drained_s: float
    outputs: list[list[int]]


class SteppedEngine:
    """The line to one engine process."""

    def __init__(self, mode: str, process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
        self._mode, self._process, self._log = mode, process, log

    def ask(self, trial: Trial) -> TrialResult:
        """Run a trial; the first one also waits for the engine to start.

        Raises:
            EngineFailedError: the process ended instead.
        """
        self.tell(trial)
        assert self._process.stdout
        if not (line := self._process.stdout.readline()):
            raise EngineFailedError(self._mode, self._last_words())
        return msgspec.json.decode(line, type=TrialResult)

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


@contextmanager
def stepped_engine(
    mode: str, settings: AppArgs, left_out: Collection[str]
) -> Iterator[SteppedEngine]:
    """An engine process with the arguments that ``settings`` stand for, those ``left_out`` aside.

    It ends on leaving.
    """
    on_cuda = settings.device == "cuda" or (settings.device == "auto" and has_cuda())
    arguments = engine_args(settings, resolve_model(settings.model), on_cuda=on_cuda)
    given = {name: value for name, value in arguments.items() if name not in left_out}
    environment = {
        **os.environ,
        **engine_environment(settings, on_cuda=on_cuda, num_cores=os.cpu_count() or 1),
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    }
    with (
        tempfile.TemporaryFile() as log,
        subprocess.Popen(
            [sys.executable, "-m", MODULE],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
        ) as process,
    ):
        try:
            engine = SteppedEngine(mode, process, log)
            engine.tell(given)
            yield engine
        finally:
            process.kill()
