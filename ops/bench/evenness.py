"""How evenly service was shared: plain numbers from readings of a fleet.

Owns the measures: Jain's index, the largest gap between two tenants, and the bound that VTC
puts on that gap.

The bound is that of ``scheduler/policies/vtc.py``: two tenants that both wait differ, in service
over weight and over any interval, by at most ``2 * (quantum + U)``, where U is what one tenant's
counter can rise by before a ranking that knows of it has taken effect. That takes a report's way
to the router, up to ``exchange_s``; the pause between two rankings, ``update_s``; and the way
back with the next report, ``exchange_s`` again. What can be served in that time is taken from
the readings: the most that all tenants together were given in as long. To that comes the
longest input, which counts as served when it starts and in the readings when it is computed.
The tenants are taken to ask for about as much as each other: nobody has ``head_start``.

That bound knows how fast this run was. The one of VTC's paper (arXiv:2401.00588) is known before
any run and for all of them, and much wider: ``2 * max(w_in * longest input, w_out * M)``, where M
is the tokens of all requests that can be in flight.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, groupby

from app.settings import AppArgs
from ops.bench.errors import UnevenLoadError
from ops.bench.fleet_watch import Glance


@dataclass(frozen=True, slots=True)
class Evenness:
    """What readings of one span of time say; service is over weight."""

    jain_index: float
    max_service_gap: float
    service: Mapping[str, float]


def jain_index(values: Sequence[float]) -> float:
    """1 where all are equal, one over their number where one has everything."""
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0


def backlogged(glances: Sequence[Glance], tenants: Sequence[str]) -> Sequence[Glance]:
    """The longest stretch of the glances in which all of these tenants want more.

    A moment in which one's clients are behind with asking ends a stretch.

    Raises:
        UnevenLoadError: none lasts half the time.
    """
    stretches = [
        list(stretch)
        for all_want, stretch in groupby(
            glances, lambda glance: all(glance.is_backlogged(tenant) for tenant in tenants)
        )
        if all_want
    ]
    longest = max(stretches, key=_lasts_s, default=[])
    if len(longest) < 2 or _lasts_s(longest) < _lasts_s(glances) / 2:
        raise UnevenLoadError(", ".join(_content(glances, tenants) or tenants))
    return longest


def evenness(glances: Sequence[Glance], tenants: Sequence[str]) -> Evenness:
    """Of these tenants from the first glance to the last; there are at least two of each.

    The gap is the largest over any interval between two glances, not just over the whole.
    """
    courses = {tenant: [_served(glance, tenant) for glance in glances] for tenant in tenants}
    gaps = []
    for one, other in combinations(courses.values(), 2):
        leads = [mine - theirs for mine, theirs in zip(one, other, strict=True)]
        gaps.append(max(leads) - min(leads))
    service = {tenant: course[-1] - course[0] for tenant, course in courses.items()}
    return Evenness(jain_index(list(service.values())), max(gaps), service)


def gap_bound(glances: Sequence[Glance], settings: AppArgs, longest_prompt: int) -> float:
    """The most that two tenants of weight 1 may differ by."""
    fairness = settings.fairness
    delay_s = fairness.update_s + 2 * settings.exchange_s
    rise = peak_service(glances, delay_s) + fairness.input_weight * longest_prompt
    return 2 * (fairness.quantum + rise)


def prior_gap_bound(settings: AppArgs, longest_prompt: int, longest_request: int) -> float:
    """The same as VTC's paper has it, from what may be in flight and not from what was served."""
    fairness = settings.fairness
    in_flight_tokens = settings.replicas * settings.max_num_seqs * longest_request
    return 2 * max(
        fairness.input_weight * longest_prompt, fairness.output_weight * in_flight_tokens
    )


def peak_service(glances: Sequence[Glance], span_s: float) -> float:
    """The most service that was given, all tenants together, within ``span_s``.

    Glances do not lie ``span_s`` apart: what was given between two is spread evenly over the
    shortest time that is at least as long.
    """
    peak = 0.0
    begin = 0
    for end in range(1, len(glances)):
        while glances[end].at_s - glances[begin + 1].at_s >= span_s:
            begin += 1
        took_s = glances[end].at_s - glances[begin].at_s
        given = glances[end].service - glances[begin].service
        peak = max(peak, given * min(1.0, span_s / took_s))
    return peak


def _lasts_s(glances: Sequence[Glance]) -> float:
    return glances[-1].at_s - glances[0].at_s if glances else 0.0


def _content(glances: Sequence[Glance], tenants: Sequence[str]) -> list[str]:
    """The tenants that at some time had all they wanted."""
    return [
        tenant for tenant in tenants if not all(glance.is_backlogged(tenant) for glance in glances)
    ]


def _served(glance: Glance, tenant: str) -> float:
    state = glance.state.tenants.get(tenant)
    return state.service / state.weight if state is not None else 0.0
