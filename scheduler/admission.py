"""What a gateway asks the Router, what it is answered, and what an engine says on joining.

Plain data that crosses processes as msgpack, no behaviour. Counts are tokens unless a name
says otherwise.
"""

import msgspec

PRIORITY_BOUND = 2**31 - 1  # of a sender's own priority, on either side of 0


class Wishes(msgspec.Struct, array_like=True, frozen=True):
    """What a request's sender asks of its scheduling. A policy takes up what concerns it."""

    priority: int = 0  # as vLLM has it: lower runs first
    service_class: str | None = None  # the tenant's own where left out
    ttft_s: float | None = None  # wanted time to first token
    tbt_s: float | None = None  # wanted time between tokens
    program: str | None = None  # the agent run that the request is a step of


class AdmitRequest(msgspec.Struct, array_like=True, frozen=True):
    """A gateway asks where a request shall run."""

    request_id: str
    tenant: str
    conversation: str | None
    prompt_tokens: int
    max_output_tokens: int
    arrival_s: float  # wall clock, as stamped by the gateway
    wishes: Wishes = Wishes()
    is_open_ended: bool = False  # its sender set no limit: max_output_tokens is the model's
    prefixes: list[int] = []  # fingerprints of ever longer prefixes of the prompt, shortest first
    output_done: int = 0  # put out by an engine that was lost: charged already, as is the prompt


class Placement(msgspec.Struct, array_like=True, frozen=True):
    """Where a request shall run, and how urgent it is there: the lowest priority runs first."""

    engine_id: str
    priority: int


class EngineCapacity(msgspec.Struct, array_like=True, frozen=True):
    """What an engine can hold."""

    max_num_seqs: int
    blocks_total: int
    block_tokens: int
    block_bytes: int = 0  # what a swapped block moves
