"""How many displacements a token bucket allows, and for whom."""

from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from scheduler.switch_budget import BURST_S, SwitchBudget

per_s = st.floats(min_value=0.01, max_value=1000.0)
waits_s = st.one_of(st.just(0.0), st.floats(min_value=0.0, max_value=5.0))


@dataclass
class Clock:
    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Engine:
    """One that displaces whenever it may, and counts."""

    clock: Clock
    budget: SwitchBudget
    switched_s: list[float] = field(default_factory=list)

    def displace(self, *, is_new: bool) -> bool:
        allowance = self.budget.allowance
        if (allowance.new if is_new else allowance.returning) < 1:
            return False
        self.budget.charge()
        self.switched_s.append(self.clock.now_s)
        return True


def make(rate: float) -> Engine:
    clock = Clock()
    return Engine(clock, SwitchBudget(rate, clock=clock))


def test_a_newcomer_may_use_all_of_it_and_others_the_upper_half() -> None:
    """Ten a second: five for those that have run before, ten for all together."""
    engine = make(10.0)

    assert [engine.displace(is_new=False) for _ in range(6)] == [True] * 5 + [False]
    assert [engine.displace(is_new=True) for _ in range(6)] == [True] * 5 + [False]
    engine.clock.now_s = 0.1
    assert not engine.displace(is_new=False)
    assert engine.displace(is_new=True)


def test_an_idle_second_fills_it() -> None:
    """No more than one burst is saved up, however long nobody switches."""
    engine = make(10.0)
    while engine.displace(is_new=True):
        pass
    engine.clock.now_s = 1000.0

    assert (engine.budget.allowance.new, engine.budget.allowance.returning) == (10, 5)


def test_the_slowest_rate_still_lets_both_switch() -> None:
    """With less than one a second, those that have run before wait until the bucket is full."""
    engine = make(0.1)

    assert engine.displace(is_new=False)
    assert not engine.displace(is_new=False)
    assert engine.displace(is_new=True)
    assert not engine.displace(is_new=True)


def test_what_cannot_wait_is_charged_but_not_owed() -> None:
    """A hundred preemptions for lack of blocks empty the bucket; it fills from there."""
    engine = make(10.0)
    for _ in range(100):
        engine.budget.charge()

    assert not engine.displace(is_new=True)
    engine.clock.now_s = 0.11
    assert engine.displace(is_new=True)


def test_a_clock_that_jumps_back_gives_nothing() -> None:
    """Nor does it take anything away."""
    engine = make(10.0)
    engine.clock.now_s = 100.0
    assert engine.displace(is_new=True)
    engine.clock.now_s = 50.0

    assert engine.budget.allowance.new == 9
    engine.clock.now_s = 100.0
    assert engine.budget.allowance.new == 9


@given(rate=per_s, events=st.lists(st.tuples(waits_s, st.booleans(), st.integers(0, 20))))
def test_no_interval_sees_more_than_its_seconds_allow(
    rate: float, events: list[tuple[float, bool, int]]
) -> None:
    """Between any two switches lie at most the rate times the time, and one burst."""
    engine = make(rate)
    for wait_s, is_new, num_wanted in events:
        engine.clock.now_s += wait_s
        for _ in range(num_wanted):
            engine.displace(is_new=is_new)

    burst = max(rate * BURST_S, 2)
    times_s = engine.switched_s
    for first, begin_s in enumerate(times_s):
        for last in range(first, len(times_s)):
            assert last - first + 1 <= burst + rate * (times_s[last] - begin_s) + 1e-6


@given(rate=per_s, waits=st.lists(waits_s, max_size=30))
def test_those_that_ran_before_never_use_up_a_newcomers_half(
    rate: float, waits: list[float]
) -> None:
    """However they try, a newcomer finds half a burst, and one switch at least."""
    engine = make(rate)
    for wait_s in waits:
        engine.clock.now_s += wait_s
        while engine.displace(is_new=False):
            pass
        assert engine.budget.allowance.new >= max(1, int(rate * BURST_S / 2))
