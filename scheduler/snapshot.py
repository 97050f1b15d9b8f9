"""The fleet as people read it: ``GET /v1/fairness``.

Owns the shape of that answer, plain values that any encoder takes, and keeps nothing.
"""

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import msgspec

from scheduler.engines import JoinedEngine
from scheduler.ledger import ServiceLedger, Tokens
from scheduler.policies.policy import Policy
from scheduler.quotas import Quotas
from scheduler.service import ServiceWeights
from scheduler.shares import TenantShares
from scheduler.tracking import RequestTable, TrackedRequest


@dataclass(slots=True)
class _Presence:
    """What one tenant has live."""

    rank: int | None = None  # of its most urgent request
    live: int = 0
    running: int = 0

    def count(self, request: TrackedRequest, rank: int) -> None:
        self.rank = rank if self.rank is None else min(self.rank, rank)
        self.live += 1
        self.running += request.is_running


@dataclass(frozen=True, slots=True)
class FairnessView:
    """The parts of a fleet that a snapshot reads."""

    policy: Policy
    service: ServiceWeights
    shares: TenantShares
    ledger: ServiceLedger
    quotas: Quotas
    requests: RequestTable
    engines: Mapping[str, JoinedEngine]

    def snapshot(self) -> dict[str, object]:
        """Tenants, engines and totals.

        ``service_share`` is a tenant's part of all service so far; ``entitled_share`` its
        part of the weights of the tenants that have live requests, 0 for one that has none.
        Limits are None where there is none; use in the last minute is counted against one only.
        """
        presence = self._presence()
        total = self.ledger.total
        return {
            "policy": self.policy.name,
            "tenants": self._tenants(presence, self.service.units(total.prompt, total.output)),
            "engines": {
                engine_id: self._engine(engine_id, engine)
                for engine_id, engine in self.engines.items()
            },
            "totals": {
                "service": self.service.units(total.prompt, total.output),
                "prompt_tokens": total.prompt,
                "output_tokens": total.output,
                "in_line": sum(request.engine_id is None for request in self.requests.all()),
                **_counts(presence.values()),
            },
        }

    def _presence(self) -> Mapping[str, _Presence]:
        presence: defaultdict[str, _Presence] = defaultdict(_Presence)
        requests = self.requests.all()
        priorities = self.policy.priorities(requests)
        # Counted from the front, whatever numbers a policy uses.
        ranks = {priority: rank for rank, priority in enumerate(sorted(set(priorities)))}
        for request, priority in zip(requests, priorities, strict=True):
            presence[request.tenant].count(request, ranks[priority])
        return presence

    def _tenants(
        self, presence: Mapping[str, _Presence], service_total: float
    ) -> dict[str, object]:
        counters = self.policy.counters()
        weight_live = sum(self.shares[tenant].weight for tenant in presence)
        names = {*self.shares.configured, *self.ledger.tenants, *presence, *self.quotas.rejected}
        tenants: dict[str, object] = {}
        for tenant in sorted(names):
            present = presence.get(tenant, _Presence())
            tokens = self.ledger.tenants.get(tenant, Tokens())
            service = self.service.units(tokens.prompt, tokens.output)
            share, use = self.shares[tenant], self.quotas.use(tenant)
            tenants[tenant] = {
                "weight": share.weight,
                "class": share.service_class.value,
                "tokens_per_minute": share.tokens_per_minute,
                "max_concurrent": share.max_concurrent,
                "tokens_used_last_minute": use.used_tokens,
                "tokens_reserved": use.reserved_tokens,
                "rejected": self.quotas.rejected.get(tenant, 0),
                "service": service,
                "prompt_tokens": tokens.prompt,
                "output_tokens": tokens.output,
                "service_share": service / service_total if service_total else 0.0,
                "entitled_share": share.weight / weight_live if present.live else 0.0,
                "counter": counters.get(tenant, 0.0),
                "rank": present.rank,
                **_counts([present]),
            }
        return tenants

    def _engine(self, engine_id: str, engine: JoinedEngine) -> dict[str, object]:
        latest = engine.latest
        return {
            "load": self.requests.load(engine_id),
            "live": len(self.requests.on_engine(engine_id)),
            "running": latest.num_running,
            "waiting": latest.num_waiting,
            "max_num_seqs": engine.capacity.max_num_seqs,
            "draining": engine.is_draining,
            "blocks_used": latest.blocks_used,
            "blocks_total": latest.blocks_total or engine.capacity.blocks_total,
            "host_blocks_used": latest.host_blocks_used,
            "host_blocks_total": latest.host_blocks_total,
            "block_bytes": engine.capacity.block_bytes,
            "switches": msgspec.structs.asdict(latest.switches),
        }


def _counts(presence: Iterable[_Presence]) -> dict[str, int]:
    present: Collection[_Presence] = list(presence)
    live = sum(each.live for each in present)
    running = sum(each.running for each in present)
    return {"live": live, "running": running, "waiting": live - running}
