"""What an engine's KV depends on, so that no other engine's is ever taken for it.

Owns the facts by which vLLM engines are told apart, and the reasons for which an engine's KV is of
no use to another: its keys would not be the same, or not mean the same.
"""

import platform
from pathlib import Path

from vllm import __version__
from vllm.config import VllmConfig
from vllm.utils.hashing import get_hash_fn_by_name
from vllm.v1.core.kv_cache_utils import resolve_none_hash_seed

from kv.pool_file import fingerprint


def why_not_shareable(config: VllmConfig) -> str | None:
    """Why KV of this engine cannot be used by its successor, if that is so."""
    cache = config.cache_config
    hash_block = get_hash_fn_by_name(cache.prefix_caching_hash_algo)
    seeds = {resolve_none_hash_seed(hash_block) for _ in range(2)}
    reasons = {
        "prefix caching is off": not cache.enable_prefix_caching,
        "an adapter may be another one under its name by then": config.lora_config is not None,
        f"{cache.prefix_caching_hash_algo} hashes blocks otherwise in each process": len(seeds) > 1,
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def key_bytes(config: VllmConfig) -> int:
    """How long a block's hash is."""
    return len(get_hash_fn_by_name(config.cache_config.prefix_caching_hash_algo)(None))


def kv_facts(config: VllmConfig) -> bytes:
    """Equal for engines whose equal keys mean equal KV, on one node."""
    model, cache, parallel = config.model_config, config.cache_config, config.parallel_config
    algorithm = cache.prefix_caching_hash_algo
    return fingerprint(
        __version__,
        platform.python_version(),  # keys are hashes of what Python's pickle writes
        config.compute_hash(),
        _weights(model.model, model.hf_config),
        model.revision,
        str(model.dtype),
        str(cache.cache_dtype),
        cache.block_size,
        parallel.tensor_parallel_size,
        algorithm,
        resolve_none_hash_seed(get_hash_fn_by_name(algorithm)),
    )


def _weights(model: str, hf_config: object) -> object:
    """Which weights a name stands for now: the files of a folder, or a commit of the hub."""
    folder = Path(model)
    if not folder.is_dir():
        return model, getattr(hf_config, "_commit_hash", None)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    stats = [path.stat() for path in files]
    return model, [
        (path.name, found.st_size, found.st_mtime_ns)
        for path, found in zip(files, stats, strict=True)
    ]
