"""A snapshot takes no more than its part of the maker's time, however often it is asked for."""

from deployments.spared_snapshot import MAX_CORE_SHARE, SparedSnapshot


class Maker:
    """Numbers what it makes; each takes ``took_s`` of the processor, by clocks the test moves."""

    def __init__(self, took_s: float) -> None:
        self.took_s = took_s
        self.now_s = self.cpu_s = 0.0
        self.num_made = 0

    def __call__(self) -> bytes:
        self.num_made += 1
        self.cpu_s += self.took_s
        self.now_s += self.took_s
        return b"%d" % self.num_made


def test_however_often_it_is_asked_for_it_takes_no_more_than_its_part() -> None:
    """A flood of questions through any number of gateways holds up admissions no more than that."""
    maker = Maker(took_s=0.1)
    snapshot = SparedSnapshot(maker, lambda: maker.now_s, lambda: maker.cpu_s)

    while maker.now_s < 100.0:
        snapshot.read()
        maker.now_s += 0.001
    assert 0.9 * MAX_CORE_SHARE < maker.cpu_s / maker.now_s <= MAX_CORE_SHARE


def test_what_costs_nothing_is_always_new() -> None:
    """A fleet of a few tenants is seen as it is."""
    maker = Maker(took_s=0.0)
    snapshot = SparedSnapshot(maker, lambda: maker.now_s, lambda: maker.cpu_s)
    assert [snapshot.read() for _ in range(3)] == [b"1", b"2", b"3"]
