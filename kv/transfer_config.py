"""How an engine is told to use our connector: the launcher's side, which loads no vLLM."""

from collections.abc import Collection, Mapping
from typing import Any

HOST_KV_GIB = "host_kv_gib"
WITHOUT = "without"
POOL, FOLDER, LIFE = "pool", "folder", "life"
REFUSED_POOLS = "refused_pools"

# What a benchmark may switch off to see what it gives: runs of neighbouring blocks, copies off
# the engine's thread, copies that outlive a swap, copies made before they are needed.
GROUPS, THREADS, REUSE, COPY_AHEAD = "groups", "threads", "reuse", "copy_ahead"
PARTS = frozenset({GROUPS, THREADS, REUSE, COPY_AHEAD})


def transfer_config(host_kv_gib: float, without: Collection[str] = ()) -> dict[str, Any]:
    """What vLLM's ``KVTransferConfig`` takes, for ``host_kv_gib`` GiB of host memory per engine.

    The memory is shared out evenly among the engine's workers (tensor parallel ranks). ``without``
    names ``PARTS`` to leave out; without all of them, swaps are block by block and blocking.
    """
    extra: dict[str, Any] = {HOST_KV_GIB: host_kv_gib}
    if without:
        extra[WITHOUT] = sorted(without)
    return {
        "kv_connector": "FastSwitchConnector",
        "kv_connector_module_path": "kv.vllm_connector",
        "kv_role": "kv_both",
        # A copy that fails costs a recomputation, never the request.
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": extra,
    }


def with_pool(config: Mapping[str, Any], folder: str, life: int, refused: int) -> dict[str, Any]:
    """The same, with host memory in a pool that may outlive the engine.

    The engine owns the pool in ``folder``; ``life`` tells its time from all other owners'.
    ``refused`` pools were of no use to it.
    """
    return _with_extra(config, {POOL: {FOLDER: folder, LIFE: life}, REFUSED_POOLS: refused})


def without_pool(config: Mapping[str, Any]) -> dict[str, Any]:
    """The same, where such a pool was wanted and could not be had."""
    return _with_extra(config, {REFUSED_POOLS: 1})


def _with_extra(config: Mapping[str, Any], more: Mapping[str, Any]) -> dict[str, Any]:
    return {**config, "kv_connector_extra_config": {**config["kv_connector_extra_config"], **more}}
