"""What happens on a service now: rates, from two looks at its counts.

Owns the arithmetic between two looks. Counts only grow, but for those of a router or an engine
that was started anew; what has fallen has no rate, so no rate is ever negative. Plain values in,
plain values out: asking is ``app.fairness_client``'s, showing ``app.top_view``'s.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from app.fairness_client import EngineNow, Fairness, Look, SwitchesNow, TenantNow, TotalsNow

# By how much a tenant's share may differ from what it is entitled to before that is worth a colour:
# in a few seconds single long prompts move it by more than a tenth.
TOLERANCE = 0.25


class Standing(Enum):
    """A tenant's share of service against what it is entitled to."""

    ABOVE = "above"
    EVEN = "even"
    BELOW = "below"  # and it has requests that wait: a tenant that asks for less is not below


@dataclass(frozen=True, slots=True)
class TenantRates:
    """One tenant over the last seconds; ``service`` is the sum since the service began."""

    tenant: str
    weight: float
    service_class: str | None
    share: float
    entitled_share: float
    standing: Standing
    rank: int | None
    running: int
    waiting: int
    service: float
    service_per_s: float
    output_tok_s: float
    rejected_per_s: float


@dataclass(frozen=True, slots=True)
class EngineRates:
    """One engine over the last seconds; ``stall_share`` of them it waited for copies."""

    engine: str
    load: float
    running: int
    waiting: int
    max_num_seqs: int
    device_blocks_used: int
    device_blocks_total: int
    host_blocks_used: int
    host_blocks_total: int
    swaps_out_per_s: float
    swaps_in_per_s: float
    blocks_out_per_s: float
    blocks_in_per_s: float
    recomputed_tok_s: float
    stall_share: float
    is_draining: bool = False


@dataclass(frozen=True, slots=True)
class TotalRates:
    """The whole service over the last seconds."""

    running: int
    waiting: int
    service_per_s: float
    prompt_tok_s: float
    output_tok_s: float
    in_line: int = 0  # of those that wait


@dataclass(frozen=True, slots=True)
class Rates:
    """All of it: tenants by share, the largest first; engines by load."""

    policy: str
    window_s: float
    totals: TotalRates
    tenants: list[TenantRates]
    engines: list[EngineRates]
    refused_settings: str | None = None


def rates(before: Look, now: Look) -> Rates:
    """What happened between two looks, of which ``now`` is the later."""
    window_s = now.at_s - before.at_s
    assert window_s > 0
    return Rates(
        policy=now.fairness.policy,
        window_s=window_s,
        totals=_total_rates(before.fairness.totals, now.fairness.totals, window_s),
        tenants=_tenant_rates(before.fairness.tenants, now.fairness.tenants, window_s),
        engines=_engine_rates(before.fairness.engines, now.fairness.engines, window_s),
        refused_settings=now.fairness.refused_settings,
    )


class LastSeconds:
    """The looks of the last ``window_s``, so that rates are means over more than one interval.

    All are of one life of the router: when its counts fall, the earlier looks are dropped.
    """

    def __init__(self, window_s: float) -> None:
        self._window_s = window_s
        self._looks: deque[Look] = deque()

    def add(self, look: Look) -> Rates | None:
        """Rates up to this look, which is later than the last; None while it is the only one."""
        if self._looks and _has_fallen(self._looks[-1].fairness, look.fairness):
            self._looks.clear()
        self._looks.append(look)
        # The second is old enough: the first is not needed to span the window.
        while len(self._looks) > 2 and look.at_s - self._looks[1].at_s >= self._window_s:
            self._looks.popleft()
        return rates(self._looks[0], look) if len(self._looks) > 1 else None


def others(tenants: Iterable[TenantRates]) -> TenantRates:
    """Several tenants as one row; their best rank is its rank."""
    each = list(tenants)
    ranks = [one.rank for one in each if one.rank is not None]
    return TenantRates(
        tenant=f"{len(each)} others",
        weight=sum(one.weight for one in each),
        service_class=None,
        share=sum(one.share for one in each),
        entitled_share=sum(one.entitled_share for one in each),
        standing=Standing.EVEN,
        rank=min(ranks, default=None),
        running=sum(one.running for one in each),
        waiting=sum(one.waiting for one in each),
        service=sum(one.service for one in each),
        service_per_s=sum(one.service_per_s for one in each),
        output_tok_s=sum(one.output_tok_s for one in each),
        rejected_per_s=sum(one.rejected_per_s for one in each),
    )


def _grown(before: float, now: float) -> float:
    return max(0.0, now - before)


def _has_fallen(before: Fairness, now: Fairness) -> bool:
    return now.totals.service < before.totals.service


def _total_rates(before: TotalsNow, now: TotalsNow, window_s: float) -> TotalRates:
    return TotalRates(
        running=now.running,
        waiting=now.waiting,
        service_per_s=_grown(before.service, now.service) / window_s,
        prompt_tok_s=_grown(before.prompt_tokens, now.prompt_tokens) / window_s,
        output_tok_s=_grown(before.output_tokens, now.output_tokens) / window_s,
        in_line=now.in_line,
    )


def _tenant_rates(
    before: Mapping[str, TenantNow], now: Mapping[str, TenantNow], window_s: float
) -> list[TenantRates]:
    """By share; among equals those with more live requests first.

    A tenant that was not there before had nothing then.
    """
    absent = TenantNow()
    gained = {
        tenant: _grown(before.get(tenant, absent).service, one.service)
        for tenant, one in now.items()
    }
    all_gained = sum(gained.values())
    listed = [
        _one_tenant(
            tenant,
            before.get(tenant, absent),
            one,
            share=gained[tenant] / all_gained if all_gained else 0.0,
            window_s=window_s,
        )
        for tenant, one in now.items()
    ]
    return sorted(listed, key=lambda one: (-one.share, -one.running - one.waiting, one.tenant))


def _one_tenant(
    tenant: str, before: TenantNow, now: TenantNow, *, share: float, window_s: float
) -> TenantRates:
    return TenantRates(
        tenant=tenant,
        weight=now.weight,
        service_class=now.service_class,
        share=share,
        entitled_share=now.entitled_share,
        standing=_standing(share, now),
        rank=now.rank,
        running=now.running,
        waiting=now.waiting,
        service=now.service,
        service_per_s=_grown(before.service, now.service) / window_s,
        output_tok_s=_grown(before.output_tokens, now.output_tokens) / window_s,
        rejected_per_s=_grown(before.rejected, now.rejected) / window_s,
    )


def _standing(share: float, now: TenantNow) -> Standing:
    if now.entitled_share == 0.0:  # it has no live requests, so there is nothing to be due
        return Standing.EVEN
    if share > now.entitled_share * (1 + TOLERANCE):
        return Standing.ABOVE
    if share < now.entitled_share * (1 - TOLERANCE) and now.waiting:
        return Standing.BELOW
    return Standing.EVEN


def _engine_rates(
    before: Mapping[str, EngineNow], now: Mapping[str, EngineNow], window_s: float
) -> list[EngineRates]:
    """By load. An engine that was not there before may have counted long: it has no rates yet."""
    listed = [
        _one_engine(engine, before.get(engine, one).switches, one, window_s)
        for engine, one in now.items()
    ]
    return sorted(listed, key=lambda one: (-one.load, one.engine))


def _one_engine(engine: str, before: SwitchesNow, now: EngineNow, window_s: float) -> EngineRates:
    switches = now.switches
    return EngineRates(
        engine=engine,
        load=now.load,
        running=now.running,
        waiting=now.waiting,
        max_num_seqs=now.max_num_seqs,
        device_blocks_used=now.blocks_used,
        device_blocks_total=now.blocks_total,
        host_blocks_used=now.host_blocks_used,
        host_blocks_total=now.host_blocks_total,
        swaps_out_per_s=_grown(before.swaps_out, switches.swaps_out) / window_s,
        swaps_in_per_s=_grown(before.swaps_in, switches.swaps_in) / window_s,
        blocks_out_per_s=_grown(before.blocks_out, switches.blocks_out) / window_s,
        blocks_in_per_s=_grown(before.blocks_in, switches.blocks_in) / window_s,
        recomputed_tok_s=_grown(before.recomputed_tokens, switches.recomputed_tokens) / window_s,
        # Reports come ten times a second: what lies before the window may be told within it.
        stall_share=min(1.0, _grown(before.stall_s, switches.stall_s) / window_s),
        is_draining=now.draining,
    )
