"""How an engine is told to use our connector: the launcher's side, which loads no vLLM."""

from typing import Any

HOST_KV_GIB = "host_kv_gib"


def transfer_config(host_kv_gib: float) -> dict[str, Any]:
    """What vLLM's ``KVTransferConfig`` takes, for ``host_kv_gib`` GiB of host memory per engine.

    The memory is shared out evenly among the engine's workers (tensor parallel ranks).
    """
    return {
        "kv_connector": "FastSwitchConnector",
        "kv_connector_module_path": "kv.vllm_connector",
        "kv_role": "kv_both",
        # A copy that fails costs a recomputation, never the request.
        "kv_load_failure_policy": "recompute",
        "kv_connector_extra_config": {HOST_KV_GIB: host_kv_gib},
    }
