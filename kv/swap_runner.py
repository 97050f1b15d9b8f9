"""Carries out swap plans on one worker, and remembers what went wrong.

A copy that fails is not raised: the engine goes on and computes that KV again. Host blocks that
were not written are remembered until they are, and whatever is loaded from them is reported as
failed.
"""

import logging

from kv.copier import BlockCopier
from kv.swap import BlockCopies

logger = logging.getLogger(__name__)


class SwapRunner:
    """Runs each step's copies: all out, then all in."""

    def __init__(self, copier: BlockCopier) -> None:
        self._copier = copier
        self._unwritten_host_blocks: set[int] = set()
        self._failed_device_blocks: set[int] = set()

    def run_outs(self, outs: BlockCopies) -> None:
        if not outs:
            return
        try:
            self._copier.copy_out(outs)
        except (RuntimeError, MemoryError):
            logger.exception("Swap-out of %d blocks failed; they will be recomputed", len(outs))
            self._unwritten_host_blocks.update(outs.host_blocks)
        else:
            self._unwritten_host_blocks.difference_update(outs.host_blocks)

    def run_ins(self, ins: BlockCopies) -> None:
        if not ins:
            return
        try:
            self._copier.copy_in(ins)
        except (RuntimeError, MemoryError):
            logger.exception("Swap-in of %d blocks failed; they will be recomputed", len(ins))
            self._failed_device_blocks.update(ins.device_blocks)
        else:
            self._failed_device_blocks.update(
                device_block
                for device_block, host_block in zip(ins.device_blocks, ins.host_blocks, strict=True)
                if host_block in self._unwritten_host_blocks
            )

    def take_failed_device_blocks(self) -> set[int]:
        """Device blocks that should have been loaded since the last call and were not."""
        failed, self._failed_device_blocks = self._failed_device_blocks, set()
        return failed

    def take_busy_s(self) -> float:
        return self._copier.take_busy_s()
