"""What an engine reports and what the fleet answers: plain data, no behaviour.

The engine's adapter fills these, the EngineReplica carries them to the Router as msgpack,
and the fleet scheduler reads them. Counts are tokens unless a name says otherwise.
"""

import msgspec


class LiveRequest(msgspec.Struct, array_like=True, frozen=True):
    """One request inside an engine, as far as it has been processed."""

    request_id: str
    tenant: str
    conversation: str | None
    arrival_s: float  # wall clock, as stamped by the gateway
    prompt_tokens: int
    prompt_done: int  # highest prompt position computed so far; recomputation does not add to it
    output_done: int
    priority: int
    is_running: bool


class FinishedRequest(msgspec.Struct, array_like=True, frozen=True):
    """A request that has left its engine, with its final counts."""

    request_id: str
    tenant: str
    prompt_tokens: int
    prompt_done: int
    output_done: int
    reason: str  # vLLM's finish reasons: stop, length, abort, error, repetition


class SwitchCounts(msgspec.Struct, array_like=True, frozen=True):
    """Context switches since the engine started. Cumulative, so a lost report loses nothing."""

    preemptions: int = 0
    swaps_out: int = 0
    swaps_in: int = 0
    blocks_out: int = 0
    blocks_in: int = 0
    fallbacks: int = 0  # preemptions whose KV was thrown away
    recomputed_tokens: int = 0
    stall_s: float = 0.0  # the engine loop waited for copies
    unswitchable: int = 0  # fallbacks because of state beside the KV, or KV that cannot be moved
    descriptors_out: int = 0  # contiguous copies that moved blocks_out; each moves all layers' part
    descriptors_in: int = 0
    blocks_ahead: int = 0  # of blocks_out, those copied before their request was preempted
    blocks_spared: int = 0  # not sent on a swap-out, since host memory had them already
    async_swaps_in: int = 0  # of swaps_in, those beside which the engine went on
    conflicts: int = 0  # steps that had to wait for a copy that still read a block they write
    evicted_blocks: int = 0  # overwritten in host memory for others
    lost_copies: int = 0  # swapped-out requests that lost KV in that way
    failed_blocks: int = 0  # copies that failed
    blocks_found: int = 0  # of blocks_in, those for requests that had not been swapped out
    load_waits: int = 0  # loads from host memory that have landed
    load_waits_1ms: int = 0  # of them, those that took at most a millisecond, and so on
    load_waits_10ms: int = 0
    load_waits_100ms: int = 0
    load_waits_1s: int = 0
    load_wait_s: float = 0.0  # together
    cheaper_recomputes: int = 0  # fallbacks since computing again would take less time than a swap
    put_off: int = 0  # displacements that had to wait, as there had been enough for the time
    pins: int = 0  # turns that ended with a tool call and whose KV was pinned for the next one
    pin_hits: int = 0  # of them, those whose conversation came back to it in time
    pins_wasted: int = 0  # of them, those that ended without having been of use
    pins_released: int = 0  # of them, those that made way for requests that run or wait
    pinned_blocks: int = 0  # now; they count as free
    wasted_block_s: float = 0.0  # blocks of the wasted, times the seconds each was pinned
    adopted_blocks: int = 0  # found at the start in host memory that a dead engine had left
    refused_pools: int = 0  # such memory that was not, or could not be, used
    fetched_blocks: int = 0  # copied from the host memory of other engines on the node
    missed_blocks: int = 0  # found there, and overwritten or gone before they were copied


class EngineProgress(msgspec.Struct, array_like=True, frozen=True):
    """What changed in one engine since its last report, and where it stands.

    ``live`` holds the requests that moved since the last report, all of them when ``is_full``.
    ``tenant_service`` (only when ``is_full``) is ``{tenant: (prompt tokens, output tokens)}``
    processed since the engine started, live and finished: what a new Router rebuilds its counters
    from.
    """

    step: int
    is_full: bool
    live: list[LiveRequest]
    finished: list[FinishedRequest]
    num_running: int
    num_waiting: int
    blocks_used: int
    blocks_total: int
    host_blocks_used: int
    host_blocks_total: int
    switches: SwitchCounts
    tenant_service: dict[str, tuple[int, int]] = {}
    reload_token_s: float = 0.0  # to have a token's KV again once it is lost; 0 while unknown
