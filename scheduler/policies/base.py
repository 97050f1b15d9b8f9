"""What a policy does that heeds nothing: the ground on which small ones stand.

Owns an answer to everything the fleet tells a policy, so that each policy says only what it
does about what concerns it.
"""

from collections.abc import Iterable, Mapping

from scheduler.ledger import Tokens
from scheduler.service import ServiceWeights
from scheduler.shares import TenantShares
from scheduler.tracking import TrackedRequest


class BasePolicy:
    """All requests are equally urgent, and nothing is kept. ``name`` is the subclass's to say."""

    name: str

    def __init__(self, service: ServiceWeights, shares: TenantShares) -> None:
        self._service = service
        self._shares = shares

    def reweigh(self) -> None:
        pass

    def arrive(self, request: TrackedRequest) -> None:
        pass

    def start(self, request: TrackedRequest) -> None:
        pass

    def progress(self, request: TrackedRequest, tokens: Tokens) -> None:
        pass

    def depart(self, request: TrackedRequest) -> None:
        pass

    def settle(self, tenant: str, tokens: Tokens) -> None:
        pass

    def rerank(self, now_s: float, num_steps: int) -> None:
        pass

    def priorities(self, requests: Iterable[TrackedRequest]) -> list[int]:
        return [0 for _ in requests]

    def counters(self) -> Mapping[str, float]:
        return {}

    def save(self) -> bytes:
        return b""

    def load(self, state: bytes) -> None:
        pass
