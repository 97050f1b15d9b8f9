"""The connector in a worker: vLLM's KV tensors as rows of blocks, and what copies them.

Owns finding where the engine's KV lies, the host memory to match, and proving at start-up that
blocks survive the way there and back.
"""

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from vllm.distributed.parallel_state import get_world_group
from vllm.v1.kv_cache_interface import KVCacheConfig

from kv.copier import BlockwiseCopier, Copier, CpuCopier
from kv.errors import SharedPoolError
from kv.host_memory import allocate, check_fits, free_bytes, pin
from kv.layout import Placement, block_rows
from kv.pool_file import fingerprint
from kv.selftest import MOST_SENT, check_round_trip
from kv.settings import SwapSettings
from kv.shared_host import SharedRows, taken_bytes
from kv.swap_manager import SwapManager

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerIdentity:
    """Which of the engine's workers this is, and what its KV depends on."""

    rank: int
    facts: bytes


def block_bytes(kv_cache_config: KVCacheConfig) -> int:
    """One block's KV in all layers, on one worker."""
    # Every tensor entry describes a place in the same allocation and gives its whole size.
    [size] = {tensor.size for tensor in kv_cache_config.kv_cache_tensors}
    return size // kv_cache_config.num_blocks


def make_swap_manager(
    settings: SwapSettings,
    kv_caches: Mapping[str, torch.Tensor],
    kv_cache_config: KVCacheConfig,
    *,
    num_host_blocks: int,
    num_workers: int = 1,
    identity: WorkerIdentity | None = None,
) -> SwapManager:
    """Allocate host memory to match the engine's KV, and prove that blocks survive it.

    With an ``identity`` it lies in the settings' pool, where that can be had.

    Raises:
        HostMemorySizeError: the machine has too little memory.
        KVLayoutError: the KV does not lie where the engine says.
        RoundTripError: a block came back from host memory changed.
    """
    is_cuda = next(iter(kv_caches.values())).is_cuda
    device = _device_rows(kv_caches, kv_cache_config)
    num_bytes = num_host_blocks * block_bytes(kv_cache_config)
    if num_workers > 1:
        _check_all_fit(settings, num_bytes * num_workers)
    shared = None
    if identity is not None:
        facts = fingerprint(identity.facts, _how_it_lies(kv_caches))
        shared = _shared_rows(settings, identity.rank, facts, device, num_host_blocks)
    if shared is not None:
        host = shared.rows
    else:
        # This worker's part alone: what another has taken is no longer free.
        check_fits(settings.host_kv_gib, num_bytes, free_bytes())
        host = allocate(device, num_host_blocks)
    if is_cuda:
        pin(host.values(), settings.host_kv_gib)
    copier = _make_copier(settings, device, host, is_cuda=is_cuda)
    with shared.trial(MOST_SENT) if shared else nullcontext():
        check_round_trip(
            copier,
            kv_caches,
            num_blocks=kv_cache_config.num_blocks,
            num_host_blocks=num_host_blocks,
        )
    if shared is not None:
        shared.declare_ready()
    return SwapManager(copier, has_threads=settings.threads, record=shared)


def _check_all_fit(settings: SwapSettings, num_bytes: int) -> None:
    """Refuse what all workers together cannot have, before the first of them takes its part."""
    taken = taken_bytes(settings.pool.folder) if settings.pool else 0
    check_fits(settings.host_kv_gib, num_bytes, free_bytes() + taken)
    get_world_group().barrier()


def _shared_rows(
    settings: SwapSettings,
    rank: int,
    facts: bytes,
    device: Mapping[str, torch.Tensor],
    num_host_blocks: int,
) -> SharedRows | None:
    assert settings.pool is not None
    try:
        return SharedRows(settings.pool, rank, facts, device, num_host_blocks, settings.host_kv_gib)
    except SharedPoolError as error:
        logger.warning("KV in host memory will end with this engine: %s", error)
        return None


def _how_it_lies(kv_caches: Mapping[str, torch.Tensor]) -> list[tuple[str, object, object, str]]:
    """The order of bytes in a block, as far as tensors tell."""
    return [
        (name, tuple(layer.shape[1:]), layer.stride(), str(layer.dtype))
        for name, layer in kv_caches.items()
    ]


def _device_rows(
    kv_caches: Mapping[str, torch.Tensor], kv_cache_config: KVCacheConfig
) -> dict[str, torch.Tensor]:
    any_layer = next(iter(kv_caches.values()))
    memory = torch.empty(0, dtype=torch.uint8, device=any_layer.device)
    memory.set_(any_layer.untyped_storage())
    placements = [
        Placement(tuple(tensor.layers), tensor.offset, tensor.layer_stride, tensor.block_stride)
        for tensor in kv_cache_config.kv_cache_tensors
    ]
    return block_rows(memory, placements, kv_cache_config.num_blocks)


def _make_copier(
    settings: SwapSettings,
    device: Mapping[str, torch.Tensor],
    host: Mapping[str, torch.Tensor],
    *,
    is_cuda: bool,
) -> Copier:
    if is_cuda:
        from kv.vllm_cuda_copier import BlockwiseCudaCopier, CudaCopier

        return (CudaCopier if settings.groups else BlockwiseCudaCopier)(device, host)
    return CpuCopier(device, host) if settings.groups else BlockwiseCopier(device, host)
