"""The least counter of members that come, rise, fall and leave."""

import pickle

from hypothesis import given
from hypothesis import strategies as st

from scheduler.policies.least import LeastCounter

MEMBERS = range(5)
members = st.sampled_from(MEMBERS)
amounts = st.integers(0, 20)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("come"), members, amounts),
        st.tuples(st.just("rise"), members, amounts),
        st.tuples(st.just("fall"), members, amounts),
        st.tuples(st.just("leave"), members, amounts),
        st.tuples(st.just("renew"), members, amounts),
        st.tuples(st.just("drop stale"), members, amounts),
    )
)


@given(steps)
def test_it_is_the_least_of_those_that_are_there(taken: list[tuple[str, int, int]]) -> None:
    """Rises need no word; whoever comes or falls is noted."""
    counters: dict[int, float] = {}
    least = LeastCounter[int](counters.get)
    for step, member, amount in taken:
        if step == "come":
            counters[member] = amount
            least.note(member)
        elif step == "leave":
            counters.pop(member, None)
        elif step == "renew":
            least.renew(MEMBERS)
        elif step == "drop stale":
            least.drop_stale()
        elif member in counters:
            counters[member] += amount if step == "rise" else -amount
            if step == "fall":
                least.note(member)
        assert least.least() == min(counters.values(), default=None)


def test_only_the_top_is_looked_at() -> None:
    """However many there are above it."""
    looked_at: list[int] = []

    def counter(member: int) -> float:
        looked_at.append(member)
        return float(member)

    least = LeastCounter[int](counter)
    least.renew(range(1000))
    looked_at.clear()

    assert least.least() == 0.0
    assert looked_at == [0]


def test_entries_of_those_who_left_do_not_pile_up() -> None:
    """However many come and go while the least one stays."""
    counters = {0: 0.0}
    least = LeastCounter[int](counters.get)
    least.note(0)

    for member in range(1, 10_000):
        counters[member] = 1.0
        least.note(member)
        del counters[member]
        least.drop_stale()

    assert len(pickle.dumps(least)) < 10_000
