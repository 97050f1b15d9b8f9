"""The load of several tenants on one server: the messages to and from the client process.

Owns what a load is. What the client does stands in ``ops.bench.tenant_client``, what loads are
made of in ``ops.bench.tenant_work``.

All times are seconds since the load began, ``begin_s`` aside.
"""

import msgspec

from ops.bench.client_process import run_client

MODULE = "ops.bench.tenant_client"


class Shape(msgspec.Struct, array_like=True, frozen=True):
    """How long a request is; its ids are drawn when it is sent."""

    prompt_tokens: int
    output_tokens: int


class Arrival(msgspec.Struct, array_like=True, frozen=True):
    """A request that comes at its time, whatever became of those before it (open loop)."""

    at_s: float
    tenant: str
    shape: Shape


class Backlog(msgspec.Struct, array_like=True, frozen=True):
    """A tenant that always wants more (closed loop).

    A stream for each of ``starts_s``, from then on with one request open at any time. They take
    the shapes in turn, from the first again after the last; no two prompts are the same.
    """

    tenant: str
    starts_s: list[float]
    shapes: list[Shape]


class TenantLoad(msgspec.Struct, frozen=True):
    """Arrivals and backlogs beside each other for ``duration_s``.

    After that backlogs go on while arrivals are unanswered, for ``patience_s`` at most. Then all
    that is open is cut off.
    """

    host: str
    port: int
    model: str
    seed: str
    duration_s: float
    patience_s: float
    arrivals: list[Arrival] = []
    backlogs: list[Backlog] = []
    headers: dict[str, dict[str, str]] = {}  # by tenant, beside the one that names it


class Answer(msgspec.Struct, array_like=True, frozen=True):
    """One request as its client saw it.

    ``due_s`` is when it was to be sent: what a client or its connection is late counts as the
    server's. ``events_s`` are its tokens' arrivals, several tokens in one event where the server
    lags; how many tokens there were is known of finished requests alone.
    """

    tenant: str
    due_s: float
    events_s: list[float]
    num_tokens: int | None
    status: int | None  # HTTP; None: cut off before an answer began

    @property
    def is_finished(self) -> bool:
        return self.num_tokens is not None

    @property
    def is_rejected(self) -> bool:
        return self.status is not None and self.status != 200


class TenantLoadResult(msgspec.Struct, array_like=True, frozen=True):
    """All requests that were due before the end, in no order; ``cut_s`` is that end."""

    begin_s: float  # on the machine's monotonic clock
    cut_s: float
    answers: list[Answer]


def put_tenant_load(load: TenantLoad) -> TenantLoadResult:
    """Put ``load`` on its server from a process of its own and wait for the end.

    Raises:
        RequestFailedError: a request broke off, or the client could not go on.
    """
    return run_client(MODULE, load, TenantLoadResult)
