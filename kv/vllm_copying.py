"""The connector in a worker: vLLM's KV tensors as rows of blocks, and what copies them.

Owns finding where the engine's KV lies, the host memory to match, and proving at start-up that
blocks survive the way there and back.
"""

from collections.abc import Mapping

import torch
from vllm.v1.kv_cache_interface import KVCacheConfig

from kv.copier import BlockwiseCopier, Copier, CpuCopier
from kv.host_memory import allocate, check_fits, free_bytes
from kv.layout import Placement, block_rows
from kv.selftest import check_round_trip
from kv.settings import SwapSettings
from kv.swap_manager import SwapManager


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
) -> SwapManager:
    """Allocate host memory to match the engine's KV, and prove that blocks survive it.

    Raises:
        HostMemorySizeError: the machine has too little memory.
        KVLayoutError: the KV does not lie where the engine says.
        RoundTripError: a block came back from host memory changed.
    """
    is_cuda = next(iter(kv_caches.values())).is_cuda
    # This worker's part alone: what another has taken is no longer free.
    num_bytes = num_host_blocks * block_bytes(kv_cache_config)
    check_fits(settings.host_kv_gib, num_bytes, free_bytes())
    device = _device_rows(kv_caches, kv_cache_config)
    host = allocate(device, num_host_blocks, is_pinned=is_cuda)
    copier = _make_copier(settings, device, host, is_cuda=is_cuda)
    check_round_trip(
        copier,
        kv_caches,
        num_blocks=kv_cache_config.num_blocks,
        num_host_blocks=num_host_blocks,
    )
    return SwapManager(copier, has_threads=settings.threads)


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
        from kv.vllm_cuda_copier import CudaCopier

        return CudaCopier(device, host)
    return CpuCopier(device, host) if settings.groups else BlockwiseCopier(device, host)
