"""What an EngineReplica tells its engine process: how to start, and the regular exchange.

Apart from ``vllm_engine`` so that the replica can use it without importing vLLM.
"""

from typing import Any

import msgspec

from ops.metrics.outlet import Outlets

# Message kinds beside vLLM's own EngineCoreRequestType, which counts up from zero.
HEARTBEAT = b"\xf0"  # [client index]: a gateway is alive; the engine answers with ECHO
ERROR_MARK = "fastswitch-engine-error: "  # before the reason, in the log of an engine that ended
EXCHANGE = b"\xf1"  # [Exchange]
STAGE = b"\xf2"  # [stage]: the replica tells the engine at which of the stages below it is

# What an engine answers to a heartbeat, and tells all its clients when it changes: where it is on
# its way out. The answer proves the way back too: outputs to a client that is not connected yet
# are lost.
ECHO = b""  # it takes requests
DRAINING = b"\x01"  # it finishes what it has and takes nothing new
PARTING = b"\x02"  # what it still has is to go on elsewhere
STAGES = frozenset({ECHO, DRAINING, PARTING})

REPLICA_CLIENT = 0  # the replica is its engine's client 0; gateways draw theirs at random


class EngineOrder(msgspec.Struct, frozen=True):
    """One engine to start. ``engine_args`` are vLLM's AsyncEngineArgs by name.

    ``card_fd`` is the open pipe on which the parent waits for the ``EngineCard``. Where
    ``pools_folder`` is named, the engine's host memory lies in there and may outlive it.
    """

    engine_id: str
    host: str
    engine_args: dict[str, Any]
    card_fd: int = -1
    outlets: Outlets = Outlets()
    application: str = ""  # named only where there are outlets
    has_vllm_metrics: bool = False
    pools_folder: str = ""
    client_silence_s: float = 15.0  # a gateway says hello every second; after this its requests end


class Exchange(msgspec.Struct, array_like=True, frozen=True):
    """New priorities and pins in, progress out."""

    client_index: int
    priorities: dict[str, int]
    is_full: bool
    pins_s: dict[str, float] | None = None
