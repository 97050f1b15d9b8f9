"""The swaps of ``bench swap``, in a process of their own that is started as an engine's is.

Owns its environment. How memory is allocated and copied is settled when a process starts.
"""

import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context

from app.engine_settings import engine_environment
from app.settings import AppArgs
from ops.bench.swap_times import SwapShape, SwapTimes


def time_swaps_as_an_engine(shape: SwapShape, repeats: int, seed: str) -> SwapTimes:
    """``ops.bench.swap_trials.time_swaps`` there.

    Raises:
        UsageError: the machine has too little memory free for pools of that size.
    """
    environment = engine_environment(AppArgs(), on_cuda=False, num_cores=os.cpu_count() or 1)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:
        with _added_to_environment(environment):  # the process starts with its first work
            times = process.submit(_time_swaps, shape, repeats, seed)
        return times.result()


def _time_swaps(shape: SwapShape, repeats: int, seed: str) -> SwapTimes:
    from ops.bench.swap_trials import time_swaps  # loads torch, which the caller does without

    return time_swaps(shape, repeats, seed)


@contextmanager
def _added_to_environment(environment: Mapping[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(environment)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
