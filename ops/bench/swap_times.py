"""What ``bench swap`` measures: the shape of a swap, and its times by mover and way."""

from dataclasses import dataclass, field
from math import ceil
from statistics import median

FASTSWITCH, CEILING, BLOCKWISE = "fastswitch", "ceiling", "blockwise"
OUT, IN, DUPLEX = "out", "in", "duplex"
WAYS = (OUT, IN, DUPLEX)
_MIN_POOL_BLOCKS = 1024
_REQUESTS_PER_POOL = 4  # at least, so that there are always two to swap


@dataclass(frozen=True, slots=True)
class SwapShape:
    """Requests of ``num_blocks``, a block being ``row_bytes`` in each layer; both pools' use."""

    num_blocks: int
    num_layers: int
    row_bytes: int
    pool_use: float

    @property
    def pool_blocks(self) -> int:
        return max(_MIN_POOL_BLOCKS, ceil(_REQUESTS_PER_POOL * self.num_blocks / self.pool_use))

    @property
    def num_bytes(self) -> int:
        return self.num_blocks * self.num_layers * self.row_bytes


@dataclass(slots=True)
class SwapTimes:
    """Seconds by mover and way; of FastSwitch's own also what each swap took."""

    shape: SwapShape
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=dict)
    dispatches_s: list[float] = field(default_factory=list)
    num_descriptors: list[int] = field(default_factory=list)

    def gb_s(self, mover: str, way: str) -> float:
        """10^9 bytes per second, of both directions together for duplex: the median."""
        num_bytes = self.shape.num_bytes * (2 if way == DUPLEX else 1)
        return num_bytes / median(self.seconds[mover, way]) / 1e9
