"""A load on a server and what came of it: the messages to and from the client process.

What the client does stands in ``ops.bench.client``.
"""

import msgspec

from ops.bench.client_process import run_client
from ops.bench.workload import WorkItem

MODULE = "ops.bench.client"


class Load(msgspec.Struct, frozen=True):
    """``streams`` clients, each sending its next request as soon as its last one has ended."""

    host: str
    port: int
    model: str
    items: list[WorkItem]
    streams: int
    want_token_ids: bool = False


class Measured(msgspec.Struct, array_like=True, frozen=True):
    """One request as its client saw it.

    ``gaps_s`` are the times between its events, in order; ``num_tokens - 1 - len(gaps_s)``
    tokens came in one event with another. ``output`` is token ids if they were asked for.
    """

    ttft_s: float
    gaps_s: list[float]
    num_tokens: int
    output: list[int] | str

    @property
    def num_events(self) -> int:
        return 1 + len(self.gaps_s)


class LoadResult(msgspec.Struct, array_like=True, frozen=True):
    """All requests in the order of the items; ``wall_s`` is from the first to the last byte."""

    wall_s: float
    requests: list[Measured]


def put_load(load: Load) -> LoadResult:
    """Put ``load`` on its server from a process of its own and wait for the end.

    Raises:
        RequestFailedError: one of the requests did not end well.
    """
    return run_client(MODULE, load, LoadResult)
