"""Whether this machine's memory holds what the settings ask for, before anything is started."""

import psutil

from app.errors import TooLittleMemoryError
from app.settings import AppArgs

GIB = 2**30
# Measured resident sizes on the CPU (two cores, tiny model): see docs/benchmarks.md.
ENGINE_GIB = 1.0  # Python, torch and vLLM of one engine process, without model and KV
REST_GIB = 2.0  # Ray, Serve, router, HAProxy and a gateway
DEFAULT_CPU_KV_GIB = 1.0


def check_memory(args: AppArgs, *, on_cuda: bool) -> None:
    """Raise when the engines' fixed needs do not fit; a model's weights come on top.

    Raises:
        TooLittleMemoryError: with what there is and what is asked for.
    """
    kv_gib = 0.0 if on_cuda else args.kv_cache_gib or DEFAULT_CPU_KV_GIB
    wanted_gib = args.max_replicas * (ENGINE_GIB + kv_gib + args.host_kv_gib) + REST_GIB
    available_gib = psutil.virtual_memory().available / GIB
    if wanted_gib > available_gib:
        raise TooLittleMemoryError(wanted_gib, available_gib, args.max_replicas)
