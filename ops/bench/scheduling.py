"""A scheduler without an engine behind it: its trials, and what it answers.

What happens inside stands in ``ops.bench.scheduling_engine``, which alone imports vLLM.
"""

import msgspec

MODULE = "ops.bench.scheduling_engine"

IDLE = "idle"
DISPLACE = "displace"
RERANK = "rerank"
WORKLOADS = (IDLE, DISPLACE, RERANK)

NUM_RERANKED = 200
STEPS_PER_RERANK = 10
PROMPT_TOKENS = 120
STEP_TOKENS = 8192
# Untimed: enough to prefill 4,096 requests, and for costs and rates to be known.
LEAD_STEPS = 100


class SchedulingTrial(msgspec.Struct, frozen=True):
    """Fill the slots, have ``num_waiting`` wait, then time ``num_steps`` steps.

    With ``is_plain`` by vLLM's own scheduler alone, which displaces nobody.
    """

    workload: str  # one of WORKLOADS
    seed: str
    num_running: int
    num_waiting: int
    num_steps: int
    is_plain: bool = False


class SchedulingTimes(msgspec.Struct, frozen=True):
    """Processor time of each step's ``schedule()``, and of vLLM's own inside of it.

    ``preempting_s`` is what vLLM's code took, all steps together, to preempt whom we displaced.
    """

    steps_s: list[float]
    vllm_s: list[float]
    num_displaced: int
    preempting_s: float = 0.0
