"""An engine's pool of host memory in the node's shared memory: taken at its start, left or removed.

Owns when a pool goes: with an engine that is asked to end. What ends in any other way leaves its
pool to the engine that Serve starts in its place. Which pools there are is ``kv.node_pools``'s.
"""

import json
import logging
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

from deployments.engine_order import EngineOrder
from kv.errors import SharedPoolError
from kv.node_pools import PoolClaim, claim_pool
from kv.transfer_config import with_pool, without_pool

logger = logging.getLogger(__name__)

TRANSFER = "kv_transfer_config"


@contextmanager
def engine_pool(order: EngineOrder) -> Iterator[Mapping[str, Any]]:
    """The engine arguments of an order, with its pool of host memory where there is to be one."""
    transfer = order.engine_args.get(TRANSFER)
    if not order.pools_folder or transfer is None:
        yield order.engine_args
        return
    try:
        claim = claim_pool(Path(order.pools_folder), _kind(order.engine_args))
    except SharedPoolError as error:
        logger.warning("KV in host memory will end with this engine: %s", error)
        yield {**order.engine_args, TRANSFER: without_pool(transfer)}
        return
    try:
        yield {**order.engine_args, TRANSFER: _in_pool(transfer, claim)}
    except SystemExit:
        claim.remove()  # this is how vLLM's loop ends when it was asked to
        raise


def _in_pool(transfer: Mapping[str, Any], claim: PoolClaim) -> dict[str, Any]:
    life = secrets.randbits(63) | 1  # no file begins with it
    return with_pool(transfer, str(claim.folder), life, claim.num_refused)


def _kind(engine_args: Mapping[str, Any]) -> str:
    """Equal for equal arguments: engines of one kind may follow each other."""
    return blake2b(json.dumps(engine_args, sort_keys=True).encode(), digest_size=6).hexdigest()
