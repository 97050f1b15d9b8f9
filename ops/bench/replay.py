"""A replay of conversations on an engine: what is asked of its process, and what comes back.

What happens inside stands in ``ops.bench.replay_engine``, which alone imports vLLM.
"""

import msgspec

from ops.bench.conversations import Conversation
from scheduler.reports import SwitchCounts

MODULE = "ops.bench.replay_engine"


class Replay(msgspec.Struct, frozen=True):
    """Play these conversations; all priorities change every ``steps_per_update`` engine steps."""

    conversations: list[Conversation]
    pattern: str
    seed: str
    steps_per_update: int


class ReplayResult(msgspec.Struct, frozen=True):
    """``outputs`` are by conversation, then turn; the rest is over all turns together."""

    wall_s: float
    num_steps: int
    first_tokens_s: list[float]
    gaps_s: list[float]
    outputs: list[list[int]]
    switches: SwitchCounts


def since(before: SwitchCounts, after: SwitchCounts) -> SwitchCounts:
    """What happened between two reports."""
    return SwitchCounts(
        *(getattr(after, name) - getattr(before, name) for name in SwitchCounts.__struct_fields__)
    )
