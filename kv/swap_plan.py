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
    ACROSS = "across"  # a neighbour's host memory to our own


DEVICE_WAYS = (Direction.OUT, Direction.IN)

# A failed load is told with its step's output. Engines that schedule ahead have planned two steps
# by then; more, where they pipeline.
STEPS_IN_FLIGHT = 4


class Urgency(IntEnum):
    """Who waits for a copy; the lowest goes first."""

    STEP = 0  # the step itself
    REQUEST = 1  # one request, while others run
    NOBODY_YET = 2  # whoever needs the memory that it leaves
    NOBODY = 3  # it may never be needed


@dataclass(frozen=True, slots=True)
class NeighbourBlocks:
    """Blocks of another engine's ``pool`` as they were found, while it had this ``life``.

    ``stamps[i]`` is that of the content of ``blocks[i]``. Nobody keeps them there.
    """

    pool: str
    life: int
    blocks: list[int]
    stamps: list[int]


@dataclass(slots=True)
class BlockCopies:
    """Whole blocks to copy: ``device_blocks[i]`` to or from ``host_blocks[i]``.

    No block is a target twice. ``request_id`` is the request that is told when it has landed,
    ``stamp`` what tells this copy out from all others into the same blocks. Those that come
    across have a ``source`` in place of device blocks.
    """

    direction: Direction
    urgency: Urgency
    device_blocks: list[int]
    host_blocks: list[int]
    request_id: str | None = None
    stamp: int = 0
    source: NeighbourBlocks | None = None

    def __len__(self) -> int:
        return len(self.host_blocks)


@dataclass(slots=True)
class SwapPlan:
    """The copies of one step, and the device blocks that the step's forward pass may write.

    The outcome is to be as if the copies were made one after another in this order, each whole,
    and the forward pass came last; whatever is in nobody's way may be made at any time.
    """

    copies: list[BlockCopies] = field(default_factory=list)
    written_blocks: Sequence[int] = ()
