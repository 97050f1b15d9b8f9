"""What gateways and engines say to the router and what it answers: tagged msgpack structs."""

from urllib.parse import urlsplit

import msgspec

from scheduler.admission import AdmitRequest
from scheduler.pressure import FleetPressure
from scheduler.reports import EngineProgress


class EngineCard(msgspec.Struct, array_like=True, frozen=True):
    """How to reach an engine, and what it is.

    ``ready`` is vLLM's own encoded ``EngineCoreReadyResponse``; only gateways open it.
    """

    engine_id: str
    input_address: str
    output_address: str
    public_key: str
    ready: bytes
    max_num_seqs: int
    num_blocks: int
    block_tokens: int
    block_bytes: int = 0  # of all its layers and GPUs

    @property
    def host(self) -> str:
        """The address of its node."""
        return urlsplit(self.input_address).hostname or ""


class Request(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Base of every call to the router."""


class Admit(Request, frozen=True):
    """A gateway asks where a request shall run; not on the engines to ``avoid``."""

    request: AdmitRequest
    avoid: list[str] = []


class Cancel(Request, frozen=True):
    """A gateway could not send a request it had admitted."""

    request_id: str


class ToolsCalled(Request, frozen=True):
    """A gateway has seen a turn end with calls of these tools; the next may come once they ran."""

    tenant: str
    conversation: str
    tools: list[str]


class Lost(Request, frozen=True):
    """A gateway's line to an engine broke: the engine has died, or only the line."""

    engine_id: str


class Hello(Request, frozen=True):
    """A gateway's regular sign of life; the answer is the ``Directory``."""

    client_index: int


class Ask(Request, frozen=True):
    """Asks for a ``Snapshot`` of tenants and engines."""


class Join(Request, frozen=True):
    """An engine reports for duty, with the newest checkpoint it was given to keep."""

    card: EngineCard
    progress: EngineProgress
    checkpoint: bytes | None = None
    is_draining: bool = False


class Report(Request, frozen=True):
    """An engine's progress since its last report."""

    engine_id: str
    progress: EngineProgress


class Drain(Request, frozen=True):
    """An engine is to go: it finishes what it has and takes nothing new."""

    engine_id: str


class Leave(Request, frozen=True):
    """An engine is gone; its requests are refunded."""

    engine_id: str


class Reply(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Base of every answer."""


class Done(Reply, frozen=True):
    """Taken note of."""


class Placed(Reply, frozen=True):
    engine_id: str
    priority: int


class InLine(Reply, frozen=True):
    """No engine has room for the request yet; its place follows as ``Called``.

    ``in_turn``: not after what its tenant sends later, so that it need not be read before.
    """

    in_turn: bool = False


class Called(Reply, frozen=True):
    """The place of a request that was in line. Sent unasked, to whoever asked for it last."""

    request_id: str
    engine_id: str
    priority: int


class Refused(Reply, frozen=True):
    """The router knows of no engine that could take the request."""

    reason: str


class OverLimit(Reply, frozen=True):
    """The request would take its tenant past a limit of the tenant's own."""

    tenant: str
    limit: str
    most: int
    wanted: int
    retry_after_s: float


class Directory(Reply, frozen=True):
    """The engines that take requests."""

    engines: list[EngineCard]


class Snapshot(Reply, frozen=True):
    """``GET /v1/fairness`` as JSON."""

    body: bytes


class Orders(Reply, frozen=True):
    """What an engine is to do: changed priorities, a full report, a checkpoint to keep, pins.

    ``pins_s`` are the seconds for which the KV of a request that has ended is to stay on the
    device; None where nothing is ever pinned. ``pressure`` is the whole fleet's, for the
    autoscaler; None while nobody knows.
    """

    priorities: dict[str, int]
    want_join: bool = False
    checkpoint: bytes | None = None
    pins_s: dict[str, float] | None = None
    pressure: FleetPressure | None = None


request_decoder = msgspec.msgpack.Decoder(
    Admit | Cancel | ToolsCalled | Lost | Hello | Ask | Join | Report | Drain | Leave
)
reply_decoder = msgspec.msgpack.Decoder(
    Done | Placed | InLine | Called | Refused | OverLimit | Directory | Snapshot | Orders
)
