"""vLLM's queue of free blocks as a plain model: what the device's queue is compared with."""

from collections import OrderedDict
from collections.abc import Sequence


class LRUQueue:
    """Blocks leave at the front; blank ones come back there, cached ones at the end."""

    def __init__(self, num_blocks: int) -> None:
        self.order = OrderedDict.fromkeys(range(num_blocks))

    @property
    def num_free(self) -> int:
        return len(self.order)

    def take(self, num_blocks: int, *, after: int | None = None) -> list[int]:
        return [self.order.popitem(last=False)[0] for _ in range(num_blocks)]

    def find(self, block: int) -> None:
        del self.order[block]

    def give_blank(self, blocks: Sequence[int]) -> None:
        for block in reversed(blocks):
            self.order[block] = None
            self.order.move_to_end(block, last=False)

    def give_cached(self, blocks: Sequence[int]) -> None:
        self.order.update(dict.fromkeys(blocks))
