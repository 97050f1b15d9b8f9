"""Rates between two looks at a service: shares, standings, and counts that fall."""

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.fairness_client import EngineNow, Fairness, Look, SwitchesNow, TenantNow, TotalsNow
from app.top_rates import LastSeconds, Rates, Standing, others, rates

Tenants = dict[str, TenantNow]
Engines = dict[str, EngineNow]


def look(
    at_s: float,
    tenants: Tenants | None = None,
    engines: Engines | None = None,
    **totals: Any,
) -> Look:
    return Look(at_s, Fairness("vtc", tenants or {}, engines or {}, TotalsNow(**totals)))


def served(service: float, **fields: Any) -> TenantNow:
    return TenantNow(service=service, **fields)


def switched(**counts: Any) -> Engines:
    return {"engine": EngineNow(switches=SwitchesNow(**counts))}


def test_a_share_is_a_tenants_part_of_what_was_served_between_the_looks() -> None:
    """What was served before counts for nothing; the largest share comes first."""
    before = look(10, {"old": served(1000), "new": served(0), "idle": served(500)})
    now = look(20, {"old": served(1100), "new": served(300), "idle": served(500)})

    found = rates(before, now)

    assert found.window_s == 10
    assert [(one.tenant, one.share) for one in found.tenants] == [
        ("new", 0.75),
        ("old", 0.25),
        ("idle", 0.0),
    ]
    assert [one.service_per_s for one in found.tenants] == [30.0, 10.0, 0.0]


def test_where_nothing_was_served_nobody_has_a_share() -> None:
    """And who has more requests stands first."""
    tenants = {"a": served(5), "b": served(5, waiting=2), "c": served(5, running=1)}
    found = rates(look(0, tenants), look(1, tenants))
    assert [(one.tenant, one.share) for one in found.tenants] == [("b", 0), ("c", 0), ("a", 0)]


def test_a_tenant_that_is_new_has_had_all_it_has_since_the_first_look() -> None:
    """It was not listed before because it had had nothing."""
    found = rates(look(0), look(2, {"new": served(60, output_tokens=20, rejected=4)}))
    [new] = found.tenants
    assert (new.share, new.service_per_s, new.output_tok_s, new.rejected_per_s) == (1, 30, 10, 2)


@pytest.mark.parametrize(
    ("service", "entitled", "waiting", "standing"),
    [
        (50.0, 0.5, 1, Standing.EVEN),
        (60.0, 0.5, 1, Standing.EVEN),  # within a quarter
        (70.0, 0.5, 1, Standing.ABOVE),
        (30.0, 0.5, 1, Standing.BELOW),
        (30.0, 0.5, 0, Standing.EVEN),  # it asks for no more
        (70.0, 0.0, 0, Standing.EVEN),  # it has no live requests any more
    ],
)
def test_a_tenant_stands_above_or_below_what_it_is_entitled_to(
    service: float, entitled: float, waiting: int, standing: Standing
) -> None:
    """Below only while it has requests that wait, above only while it is entitled to something."""
    before = look(0, {"it": served(0), "rest": served(0)})
    it = served(service, entitled_share=entitled, waiting=waiting)
    found = rates(before, look(1, {"it": it, "rest": served(100 - service)}))
    assert {one.tenant: one.standing for one in found.tenants}["it"] is standing


def test_an_engines_rates_are_per_second_and_its_stall_a_part_of_the_time() -> None:
    """Blocks and swaps both ways, tokens computed again, and the busiest engine first."""
    idle = {"idle": EngineNow(load=1.0)}
    now = switched(swaps_out=4, swaps_in=2, blocks_out=80, blocks_in=40, stall_s=0.1)
    busy = {"engine": EngineNow(load=9.0, switches=now["engine"].switches)}

    found = rates(look(0, engines=switched() | idle), look(2, engines=idle | busy))

    assert [one.engine for one in found.engines] == ["engine", "idle"]
    [engine, _] = found.engines
    assert (engine.swaps_out_per_s, engine.swaps_in_per_s) == (2.0, 1.0)
    assert (engine.blocks_out_per_s, engine.blocks_in_per_s) == (40.0, 20.0)
    assert engine.stall_share == pytest.approx(0.05)


def test_an_engine_that_is_new_has_no_rates_yet() -> None:
    """It may have counted for hours, for a router that is gone."""
    [engine] = rates(look(0), look(1, engines=switched(swaps_out=10**6))).engines
    assert engine.swaps_out_per_s == 0.0


def test_an_engine_that_drains_now_is_told() -> None:
    """Whatever it did before."""
    found = rates(
        look(0, engines=switched()), look(1, engines={"engine": EngineNow(draining=True)})
    )
    assert [one.is_draining for one in found.engines] == [True]


def test_totals_are_tokens_per_second_of_both_kinds() -> None:
    """And how many requests run, wait, and are in line now."""
    before = look(0, service=0.0, prompt_tokens=100, output_tokens=10)
    now = look(
        5, service=50.0, prompt_tokens=600, output_tokens=110, running=3, waiting=4, in_line=2
    )
    totals = rates(before, now).totals
    assert (totals.prompt_tok_s, totals.output_tok_s, totals.service_per_s) == (100, 20, 10)
    assert (totals.running, totals.waiting, totals.in_line) == (3, 4, 2)


def test_rates_are_means_over_the_last_seconds() -> None:
    """The window reaches back to the look that is just old enough."""
    seconds = LastSeconds(4.0)
    tokens_at = {0.0: 0, 2.0: 200, 4.0: 400, 6.0: 400, 8.0: 400}
    found = [seconds.add(look(at_s, output_tokens=sum_)) for at_s, sum_ in tokens_at.items()]

    assert found[0] is None
    told = [(one.window_s, one.totals.output_tok_s) for one in found if one]
    assert told == [(2, 100), (4, 100), (4, 50), (4, 0)]


def test_after_a_new_router_only_its_own_counts_are_compared() -> None:
    """Rates begin anew when the sum of service falls, instead of vanishing for a window."""
    seconds = LastSeconds(100.0)
    seconds.add(look(0, service=1000.0))
    assert seconds.add(look(1, service=0.0)) is None
    found = seconds.add(look(2, service=30.0))
    assert found is not None
    assert (found.window_s, found.totals.service_per_s) == (1.0, 30.0)


def test_others_are_the_sum_of_their_rows() -> None:
    """With the rank of the most urgent among them."""
    tenants = {
        "a": served(10, rank=2, waiting=1, entitled_share=0.1),
        "b": served(30, rank=None, running=2, entitled_share=0.2),
    }
    row = others(rates(look(0), look(1, tenants)).tenants)
    assert (row.tenant, row.rank, row.running, row.waiting) == ("2 others", 2, 2, 1)
    assert [row.share, row.entitled_share] == pytest.approx([1.0, 0.3])


counts = st.integers(0, 10**9)
tenants_now = st.dictionaries(
    st.sampled_from("abc"),
    st.builds(TenantNow, service=counts, output_tokens=counts, rejected=counts, waiting=counts),
)
switches_now = st.builds(
    SwitchesNow,
    swaps_out=counts,
    swaps_in=counts,
    blocks_out=counts,
    blocks_in=counts,
    recomputed_tokens=counts,
    stall_s=counts,
)
engines_now = st.dictionaries(st.sampled_from("xyz"), st.builds(EngineNow, switches=switches_now))
totals_now = st.builds(TotalsNow, service=counts, prompt_tokens=counts, output_tokens=counts)
fairness_now = st.builds(
    Fairness, policy=st.just("vtc"), tenants=tenants_now, engines=engines_now, totals=totals_now
)


def numbers(found: Rates) -> list[float]:
    told = msgspec.to_builtins([found.totals, *found.tenants, *found.engines])
    return [value for row in told for value in row.values() if isinstance(value, int | float)]


@given(before=fairness_now, now=fairness_now, window_s=st.floats(0.01, 1e4))
def test_no_rate_is_ever_negative_and_shares_are_parts_of_one(
    before: Fairness, now: Fairness, window_s: float
) -> None:
    """Whatever was started anew between the looks, or came, or left."""
    found = rates(Look(0.0, before), Look(window_s, now))

    assert min(numbers(found)) >= 0
    shares = sum(one.share for one in found.tenants)
    assert shares == pytest.approx(1.0) or shares == 0.0
    assert all(one.stall_share <= 1.0 for one in found.engines)
