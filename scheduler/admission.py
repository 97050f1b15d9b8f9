"""What a gateway asks the Router, what it is answered, and what an engine says on joining.

Plain data that crosses processes as msgpack, no behaviour. Counts are tokens unless a name
says otherwise.
"""

import msgspec


class AdmitRequest(msgspec.Struct, array_like=True, frozen=True):
    """A gateway asks where a request shall run."""

    request_id: str
    tenant: str
    conversation: str | None
    prompt_tokens: int
    max_output_tokens: int
    arrival_s: float  # wall clock, as stamped by the gateway


class Placement(msgspec.Struct, array_like=True, frozen=True):
    """Where a request shall run, and how urgent it is there: the lowest priority runs first."""

    engine_id: str
    priority: int


class EngineCapacity(msgspec.Struct, array_like=True, frozen=True):
    """What an engine can hold."""

    max_num_seqs: int
    blocks_total: int
    block_tokens: int
