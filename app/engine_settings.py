"""What an engine is started with: vLLM's arguments and the environment, from our settings.

Owns the translation, nothing else; both sides of it (settings, vLLM) have their own homes.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.models import model_name
from app.settings import AppArgs
from kv.transfer_config import transfer_config
from scheduler.class_path import scheduler_class_path
from scheduler.engine_config import additional_config

GIB = 2**30
DEFAULT_CPU_KV_GIB = 1.0
# A core prefills some 2,000 tokens a second: with vLLM's thousands in a step, whoever comes in the
# wrong moment would wait for half a second and more, and every stream pause as long.
DEFAULT_CPU_STEP_TOKENS = 128
CPU_WORKER = "deployments.vllm_cpu_worker.SeededCPUWorker"
# Faster memory allocation for the CPU engine (Debian's libtcmalloc-minimal4); used where present.
TCMALLOC = (
    Path("/usr/lib/x86_64-linux-gnu/libtcmalloc_minimal.so.4"),
    Path("/usr/lib/aarch64-linux-gnu/libtcmalloc_minimal.so.4"),
)
# From this size on memcpy is to write past the caches. Left alone glibc does so from most of the
# shared cache on, which on large machines is hundreds of MiB; below that, what a swap is about to
# overwrite is first read in (Intel Xeon, 480 MiB of shared cache: 7 GB/s instead of 12).
STREAMED_BYTES = 256 * 1024


def engine_args(args: AppArgs, model: str, *, on_cuda: bool) -> dict[str, Any]:
    """Name vLLM's AsyncEngineArgs. ``model`` is a folder or a hub name, never 'demo'."""
    kv_gib = args.kv_cache_gib if args.kv_cache_gib or on_cuda else DEFAULT_CPU_KV_GIB
    step_tokens = args.max_num_batched_tokens
    if step_tokens is None and not on_cuda and args.engine_args.get("enable_chunked_prefill", True):
        step_tokens = max(DEFAULT_CPU_STEP_TOKENS, args.max_num_seqs)
    return {
        "model": model,
        "served_model_name": [args.served_model_name or model_name(args.model)],
        # On the CPU equal inputs shall give equal tokens whatever else is in the batch.
        "dtype": "float32" if args.dtype == "auto" and not on_cuda else args.dtype,
        "max_model_len": args.max_model_len,
        "max_num_seqs": args.max_num_seqs,
        "max_num_batched_tokens": step_tokens,
        "tensor_parallel_size": args.tensor_parallel_size,
        "kv_cache_memory_bytes": int(kv_gib * GIB) if kv_gib else None,
        "scheduling_policy": "priority",
        "scheduler_cls": scheduler_class_path(async_scheduling=on_cuda),
        "worker_cls": "auto" if on_cuda else CPU_WORKER,
        "additional_config": additional_config(max_switches_per_s=args.fairness.max_switches_per_s),
        # Its other half, counts, stays in the engine.
        "disable_log_stats": args.tracing.otlp_endpoint is None,
        "kv_transfer_config": transfer_config(args.host_kv_gib) if args.host_kv_gib else None,
        **args.engine_args,
    }


def engine_environment(args: AppArgs, *, on_cuda: bool, num_cores: int) -> Mapping[str, str]:
    """What an engine process finds in its environment beside its parent's."""
    common = {"VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "WARNING"}
    if on_cuda:
        return common
    # One core is left to gateway, router and Ray, as vLLM's own server leaves one to itself.
    threads = max(1, (num_cores - 1) // args.max_replicas)
    environment = {
        **common,
        "OMP_NUM_THREADS": str(threads),
        "GLIBC_TUNABLES": _before_inherited(
            "GLIBC_TUNABLES", f"glibc.cpu.x86_non_temporal_threshold={STREAMED_BYTES}"
        ),
    }
    if args.tensor_parallel_size == 1:
        # The model then runs inside the engine process: one process and one hop per step less.
        environment["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    preload = [str(path) for path in TCMALLOC if path.exists()]
    if preload:
        environment["LD_PRELOAD"] = _before_inherited("LD_PRELOAD", *preload)
    return environment


def _before_inherited(name: str, *ours: str) -> str:
    """A list in the environment, ours in front of what the operator has there."""
    inherited = os.environ.get(name)
    return ":".join([*ours, *([inherited] if inherited else [])])
