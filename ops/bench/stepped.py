"""A vLLM engine that is stepped by hand: its trials, and an engine that answers them.

What happens inside stands in ``ops.bench.stepped_engine``, which alone imports vLLM.
"""

from collections.abc import Collection, Iterator
from contextlib import contextmanager

import msgspec

from app.settings import AppArgs
from ops.bench.engine_process import EngineProcess, given_args, running_engine
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


@contextmanager
def stepped_engine(
    mode: str, settings: AppArgs, left_out: Collection[str]
) -> Iterator[EngineProcess[TrialResult]]:
    """An engine process with the arguments that ``settings`` stand for, those ``left_out`` aside.

    It ends on leaving.
    """
    arguments = {
        name: value for name, value in given_args(settings).items() if name not in left_out
    }
    with running_engine(mode, settings, arguments, MODULE, TrialResult) as engine:
        yield engine
