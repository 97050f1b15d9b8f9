"""Ranks that follow counters without flickering."""

from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from scheduler.policies.ranks import RankGroups

QUANTUM = 100.0
COUNTERS = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 500), min_size=1)


def ranked(groups: RankGroups[str], **counters: float) -> dict[str, int]:
    groups.update(counters)
    return dict(groups.ranks)


def test_tenants_within_a_quantum_share_a_rank() -> None:
    """Ranks are dense, and counters about equal give the same one."""
    groups = RankGroups[str](QUANTUM)

    assert ranked(groups, a=0, b=90, c=150, d=400) == {"a": 0, "b": 0, "c": 1, "d": 2}


def test_a_tenant_at_the_edge_of_a_group_does_not_flicker() -> None:
    """Having outgrown a group by a token, a tenant is back only after half a quantum."""
    groups = RankGroups[str](QUANTUM)

    assert ranked(groups, a=0, b=100) == {"a": 0, "b": 0}
    assert ranked(groups, a=0, b=101) == {"a": 0, "b": 1}
    assert ranked(groups, a=2, b=101) == {"a": 0, "b": 1}
    assert ranked(groups, a=50, b=101) == {"a": 0, "b": 1}
    assert ranked(groups, a=51, b=101) == {"a": 0, "b": 0}
    assert ranked(groups, a=51, b=150) == {"a": 0, "b": 0}


def test_tenants_served_alike_stay_equal_beside_one_that_asks_for_little() -> None:
    """Two tenants rising side by side share a rank, though a third stays far behind."""
    groups = RankGroups[str](QUANTUM)
    ranked(groups, light=0, a=500, b=510)

    for served in range(0, 1000, 7):
        ranks = ranked(groups, light=served / 10, a=500 + served, b=510 + served)
        assert ranks == {"light": 0, "a": 1, "b": 1}


def test_a_tenant_that_comes_in_between_joins_the_group_below_it() -> None:
    """Until the next update a newcomer has the rank of those its counter is next above."""
    groups = RankGroups[str](QUANTUM)
    ranked(groups, a=100, b=300)

    for tenant, counter in {"first": 50, "with_a": 180, "with_b": 900}.items():
        groups.insert(tenant, counter)

    assert dict(groups.ranks) == {"a": 0, "b": 1, "first": 0, "with_a": 0, "with_b": 1}


@given(before=COUNTERS, after=COUNTERS)
def test_ranks_never_contradict_counters(before: dict[str, float], after: dict[str, float]) -> None:
    """Whatever was before: dense, in the order of the counters, and strict beyond a quantum."""
    groups = RankGroups[str](QUANTUM)
    groups.update(before)
    groups.update(after)

    ranks = groups.ranks
    assert sorted(set(ranks.values())) == list(range(len(set(ranks.values()))))
    assert set(ranks) == set(after)
    for (lower, low), (higher, high) in permutations(after.items(), 2):
        if low < high:
            assert ranks[lower] <= ranks[higher]
        if low + QUANTUM < high:
            assert ranks[lower] < ranks[higher]
