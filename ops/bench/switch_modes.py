"""The modes of ``bench switch``: what becomes of a preempted request's KV in each.

All have the same scheduler and arguments; only vLLM's ``kv_transfer_config`` differs.
"""

from typing import Any

from app.devices import has_cuda
from kv.transfer_config import COPY_AHEAD, GROUPS, PARTS, REUSE, THREADS, transfer_config

RECOMPUTE, SWAP_BLOCKING, FASTSWITCH = "recompute", "swap_blocking", "fastswitch"
OFFLOAD = "offload"
GIB = 2**30


def without(part: str) -> str:
    """The mode in which everything but one part is on."""
    return f"{FASTSWITCH}_without_{part}"


_LEFT_OUT: dict[str, frozenset[str]] = {
    SWAP_BLOCKING: PARTS,
    FASTSWITCH: frozenset(),
    **{without(part): frozenset({part}) for part in (GROUPS, THREADS, REUSE, COPY_AHEAD)},
}


def available_modes() -> tuple[str, ...]:
    """Every mode that this machine can run; vLLM's own offloading needs a GPU."""
    return (RECOMPUTE, *_LEFT_OUT, *((OFFLOAD,) if has_cuda() else ()))


def kv_transfer(mode: str, host_kv_gib: float) -> dict[str, Any] | None:
    """What vLLM is told about KV transfer; nothing where preempted KV is computed again."""
    if mode == RECOMPUTE:
        return None
    if mode == OFFLOAD:
        return {
            "kv_connector": "OffloadingConnector",
            "kv_role": "kv_both",
            "kv_connector_extra_config": {"cpu_bytes_to_use": int(host_kv_gib * GIB)},
        }
    return transfer_config(host_kv_gib, _LEFT_OUT[mode])
