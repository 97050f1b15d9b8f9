"""Ranks that follow counters without flickering."""

from dataclasses import dataclass
from itertools import permutations

from hypothesis import given
from hypothesis import strategies as st

from scheduler.policies.ranks import RankGroups
from tests.scheduler.policies.stand_in import places

QUANTUM = 100.0
COUNTERS = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 500), min_size=1)


@dataclass(eq=False)
class Owner:
    rank: int = 0


class Crowd:
    """Owners by name, ranked by counters that a test sets."""

    def __init__(self) -> None:
        self.groups = RankGroups[Owner](QUANTUM)
        self.owners: dict[str, Owner] = {}

    def insert(self, **counters: float) -> None:
        for name, counter in counters.items():
            self.owners[name] = Owner()
            self.groups.insert(self.owners[name], counter)

    def rank(self, **counters: float) -> dict[str, int]:
        """These are all from now on; their ranks."""
        self.insert(**{name: each for name, each in counters.items() if name not in self.owners})
        self.owners = {name: self.owners[name] for name in counters}
        self.groups.update({self.owners[name]: each for name, each in counters.items()})
        return self.ranks

    @property
    def ranks(self) -> dict[str, int]:
        return {name: owner.rank for name, owner in self.owners.items()}

    @property
    def places(self) -> dict[str, int]:
        """Ranks counted from the front."""
        return dict(zip(self.owners, places(list(self.ranks.values())), strict=True))


def placed(crowd: Crowd, **counters: float) -> dict[str, int]:
    crowd.rank(**counters)
    return crowd.places


def test_tenants_within_a_quantum_share_a_rank() -> None:
    """Counters about equal give the same one."""
    assert placed(Crowd(), a=0, b=90, c=150, d=400) == {"a": 0, "b": 0, "c": 1, "d": 2}


def test_a_tenant_at_the_edge_of_a_group_does_not_flicker() -> None:
    """Having outgrown a group by a token, a tenant is back only after half a quantum."""
    crowd = Crowd()

    assert placed(crowd, a=0, b=100) == {"a": 0, "b": 0}
    assert placed(crowd, a=0, b=101) == {"a": 0, "b": 1}
    assert placed(crowd, a=2, b=101) == {"a": 0, "b": 1}
    assert placed(crowd, a=50, b=101) == {"a": 0, "b": 1}
    assert placed(crowd, a=51, b=101) == {"a": 0, "b": 0}
    assert placed(crowd, a=51, b=150) == {"a": 0, "b": 0}


def test_tenants_served_alike_stay_equal_beside_one_that_asks_for_little() -> None:
    """Two tenants rising side by side share a rank, though a third stays far behind."""
    crowd = Crowd()
    crowd.rank(light=0, a=500, b=510)

    for served in range(0, 1000, 7):
        together = placed(crowd, light=served / 10, a=500 + served, b=510 + served)
        assert together == {"light": 0, "a": 1, "b": 1}


def test_nobody_elses_rank_changes_when_the_front_goes_or_a_tenant_moves_back() -> None:
    """A rank is a number of its group's own, not a count of the groups before it."""
    crowd = Crowd()
    before = crowd.rank(front=0, a=1000, b=2000, c=3000, d=4000)

    after = crowd.rank(a=1000, b=2000, c=3000, d=4000)
    assert after == {name: before[name] for name in "abcd"}

    last = crowd.rank(a=3500, b=2000, c=3000, d=4000)
    assert {name: last[name] for name in "bcd"} == {name: before[name] for name in "bcd"}
    assert last["c"] < last["a"] < last["d"]


def test_a_group_that_somebody_joins_at_its_front_keeps_its_rank() -> None:
    """The newcomer takes over the rank of the many, not the other way about."""
    crowd = Crowd()
    before = crowd.rank(riser=0, a=1010, b=1020, c=1030)

    assert crowd.rank(riser=1000, a=1010, b=1020, c=1030)["a"] == before["a"]


def test_a_tenant_that_comes_in_between_joins_the_group_below_it() -> None:
    """Until the next update a newcomer has the rank of those its counter is next above."""
    crowd = Crowd()
    crowd.rank(a=100, b=300)

    crowd.insert(first=50, with_a=180, with_b=900)

    assert crowd.places == {"a": 0, "b": 1, "first": 0, "with_a": 0, "with_b": 1}


@given(st.lists(COUNTERS, min_size=1, max_size=5))
def test_ranks_never_contradict_counters(updates: list[dict[str, float]]) -> None:
    """Whatever was before: in the order of the counters, and strictly beyond a quantum."""
    crowd = Crowd()
    for counters in updates:
        ranks = crowd.rank(**counters)

        for (lower, low), (higher, high) in permutations(counters.items(), 2):
            if low < high:
                assert ranks[lower] <= ranks[higher]
            if low + QUANTUM < high:
                assert ranks[lower] < ranks[higher]


@given(st.lists(COUNTERS, min_size=1, max_size=5), st.floats(0, 1000))
def test_ranks_change_only_where_the_order_does(
    updates: list[dict[str, float]], served: float
) -> None:
    """Where all groups stay together and in order, all ranks stay."""
    crowd = Crowd()
    for counters in updates:
        before, places_before = crowd.rank(**counters), crowd.places

        crowd.rank(**{name: counter + served for name, counter in counters.items()})

        if crowd.places == places_before:
            assert crowd.ranks == before
