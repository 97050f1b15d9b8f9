"""What an EngineReplica tells its engine process: how to start, what to change, how to report.

Apart from ``vllm_engine`` so that the replica can use it without importing vLLM.
"""

from typing import Any

import msgspec

from ops.metrics.outlet import Outlets

# Message kinds beside vLLM's own EngineCoreRequestType, which counts up from zero.
HEARTBEAT = b"\xf0"  # [client index]: a gateway is alive; the engine answers with ECHO
ERROR_MARK = "fastswitch-engine-error: "  # before the reason, in the log of an engine that ended
EXCHANGE = b"\xf1"  # [Exchange]: answered with the progress since the last one
STAGE = b"\xf2"  # [stage]: the replica tells the engine at which of the stages below it is
CHANGES = b"\xf3"  # [Changes]: to go by from the next step on; no answer

# What an engine answers to a heartbeat, and tells all its clients when it changes: where it is on
# its way out. The answer proves the way back too: outputs to a client that is not connected yet
# are lost. Threads beside the engine's loop answer, so they also say when that stands still.
ECHO = b""  # it takes requests
DRAINING = b"\x01"  # it finishes what it has and takes nothing new
PARTING = b"\x02"  # what it still has is to go on elsewhere
STUCK = b"\x03"  # its loop has left the replica's question unanswered; it may go on yet
STAGES = frozenset({ECHO, DRAINING, PARTING, STUCK})

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
    stuck_s: float = 30.0  # its loop answers the replica after a step: milliseconds, or seconds


class Exchange(msgspec.Struct, array_like=True, frozen=True):
    """Whom to tell the progress, and whether all of it or what is new."""

    client_index: int
    is_full: bool


class Changes(msgspec.Struct, array_like=True, frozen=True):
    """New priorities of requests, and pins of turns, as the router ordered them."""

    priorities: dict[str, int]
    pins_s: dict[str, float] | None = None
