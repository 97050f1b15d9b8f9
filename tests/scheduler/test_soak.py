"""Memory under switches at every step, for as long as one likes to wait.

    export SOAK_S=3600 ONEDNN_PRIMITIVE_CACHE_CAPACITY=1
    make test PYTEST_ARGS="tests/scheduler/test_soak.py -s"

oneDNN, with which vLLM multiplies on a CPU, keeps a kernel for every shape it has seen (some
200 MiB in a few minutes, with and without us); without that cache the process stays as it is. What
the C library's allocator holds back of freed memory is given back before memory is read.
"""

import ctypes
import os
import random
import time
from dataclasses import replace

import psutil
import pytest

from tests.scheduler.engine_harness import Engine, EngineSettings, preempt_at_random
from tests.scheduler.workloads import WORKLOADS

SOAK_S = float(os.environ.get("SOAK_S", "0"))
# Fragments that cannot be given back, whatever the time.
SLACK_MIB = 16
NUM_WARM_UP_ROUNDS = 20

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(not SOAK_S, reason="a soak takes as long as SOAK_S says"),
    pytest.mark.skipif(
        os.environ.get("ONEDNN_PRIMITIVE_CACHE_CAPACITY") != "1",
        reason="oneDNN's cache has to be off (ONEDNN_PRIMITIVE_CACHE_CAPACITY=1)",
    ),
]


@pytest.mark.timeout(SOAK_S + 300)
@pytest.mark.parametrize(
    "started_engine",
    [EngineSettings(num_blocks=64, host_blocks=48)],
    ids=["few blocks"],
    indirect=True,
    scope="session",
)
def test_memory_stays_flat(engine: Engine, seed: int) -> None:
    """A random victim at every step and requests without end: the process does not grow."""
    choose = random.Random(seed)
    engine.steer(preempt_at_random(choose, every=1))
    num_rounds = 0

    def run_a_round() -> float:
        nonlocal num_rounds
        num_rounds += 1
        works = choose.sample(WORKLOADS["mixed"], k=50)
        outputs = engine.run(replace(work, name=f"{work.name}.{num_rounds}") for work in works)
        engine.forget(outputs)
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        return psutil.Process().memory_info().rss / 2**20

    end_s = time.monotonic() + SOAK_S
    warm_mib = max(run_a_round() for _ in range(NUM_WARM_UP_ROUNDS))
    told_s = time.monotonic()
    while time.monotonic() < end_s:
        grown_mib = run_a_round() - warm_mib
        if time.monotonic() - told_s > 30:
            told_s = time.monotonic()
            switches = engine.switches().preemptions
            print(f"{switches} switches, {warm_mib:.0f} MiB and {grown_mib:+.1f}", flush=True)
        assert grown_mib < SLACK_MIB

    assert engine.switches().preemptions > 500
    progress = engine.progress()
    assert (progress.blocks_used, progress.host_blocks_used) == (0, 0)
