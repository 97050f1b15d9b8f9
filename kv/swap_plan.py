"""What one engine step asks of the workers: copies, and which blocks the step itself writes.

Plain data on its way from the engine's scheduler to its workers; ``kv.swap_manager`` carries it
out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, IntEnum


class Direction(Enum):
    """Which way blocks go."""

    OUT = "out"  # device to host
    IN = "in"  # host to device


class Urgency(IntEnum):
    """Who waits for a copy; the lowest goes first."""

    STEP = 0  # the step itself
    REQUEST = 1  # one request, while others run
    NOBODY_YET = 2  # whoever needs the memory that it leaves
    NOBODY = 3  # it may never be needed


@dataclass(slots=True)
class BlockCopies:
    """Whole blocks to copy: ``device_blocks[i]`` to or from ``host_blocks[i]``.

    No block is a target twice. ``request_id`` is the request that is told when it has landed,
    ``stamp`` what tells this copy out from all others into the same blocks.
    """

    direction: Direction
    urgency: Urgency
    device_blocks: list[int]
    host_blocks: list[int]
    request_id: str | None = None
    stamp: int = 0

    def __len__(self) -> int:
        return len(self.device_blocks)


@dataclass(slots=True)
class SwapPlan:
    """The copies of one step, and the device blocks that the step's forward pass may write.

    The outcome is to be as if the copies were made one after another in this order, each whole,
    and the forward pass came last; whatever is in nobody's way may be made at any time.
    """

    copies: list[BlockCopies] = field(default_factory=list)
    written_blocks: Sequence[int] = ()
