"""What tenants ask for is the same for the same seed, and keeps a trace's proportions."""

from statistics import fmean

from hypothesis import given
from hypothesis import strategies as st

from ops.bench.tenant_load import Arrival, Shape
from ops.bench.tenant_work import (
    NUM_SHAPES,
    Lengths,
    TraceScale,
    backlog,
    bursts,
    demands,
    drawn_shapes,
    light_tenants,
    poisson,
    traced,
)
from ops.bench.workload import Span, TraceRow

LENGTHS = Lengths(Span(4, 8), Span(16, 32))


def row(tenant: str, arrival_s: float, prompt: int = 100, output: int = 50) -> TraceRow:
    return TraceRow(
        conversation=f"{tenant} {arrival_s}",
        history_tokens=0,
        input_tokens=prompt,
        output_tokens=output,
        arrival_s=arrival_s,
        tenant=tenant,
    )


@given(st.integers(0, 50), st.floats(1.0, 20.0))
def test_poisson_arrivals_come_in_order_and_in_time(seed: int, per_s: float) -> None:
    """About as many as wanted, all within the duration, and the same again."""
    arrivals = poisson(str(seed), "quiet", per_s, 100.0, LENGTHS)
    times_s = [arrival.at_s for arrival in arrivals]
    assert times_s == sorted(times_s)
    assert 0 <= times_s[0] <= times_s[-1] < 100
    assert abs(len(arrivals) - 100 * per_s) < 6 * (100 * per_s) ** 0.5
    assert arrivals == poisson(str(seed), "quiet", per_s, 100.0, LENGTHS)


def test_shapes_stay_within_their_spans() -> None:
    """As many as a backlog has, none shorter or longer than wanted."""
    shapes = drawn_shapes("0", LENGTHS)
    assert len(shapes) == NUM_SHAPES
    assert {shape.prompt_tokens for shape in shapes} == set(range(4, 9))
    assert 22 < fmean(shape.output_tokens for shape in shapes) < 26
    assert LENGTHS.longest == 40


def test_a_larger_backlog_opens_as_much_faster() -> None:
    """All of its streams are open after the same time."""
    few, many = (backlog("t", [Shape(1, 1)], count, open_s=3.0) for count in (2, 64))
    assert few.starts_s == [0.0, 1.5]
    assert len([start_s for start_s in many.starts_s if start_s < 1.5]) == 32
    assert max(many.starts_s) < 3.0


def test_bursts_come_together_and_fit_in() -> None:
    """The first after half a pause, so that none stands at either end."""
    arrivals = bursts("0", "bursty", 3, every_s=4.0, duration_s=10.0, lengths=LENGTHS)
    assert [arrival.at_s for arrival in arrivals] == [2.0] * 3 + [6.0] * 3
    assert len(bursts("0", "bursty", 1, every_s=4.0, duration_s=12.0, lengths=LENGTHS)) == 3


def test_a_part_of_a_trace_keeps_its_proportions() -> None:
    """Seconds and tokens scaled, from the part's begin, without those who play another role."""
    rows = [row("a", 10.0), row("b", 50.0), row("a", 70.0, prompt=1, output=1), row("a", 110.0)]
    found = traced(
        rows, TraceScale(tokens=0.5, seconds=0.1), begin_s=4.0, duration_s=4.0, leave_out={"c"}
    )
    assert found == [Arrival(0.0, "b", Shape(50, 25)), Arrival(2.0, "a", Shape(1, 1))]
    assert traced([], TraceScale(1, 1), begin_s=0.0, duration_s=1.0) == []


def test_light_are_those_below_an_equal_share() -> None:
    """By service, not by number of requests."""
    rows = [row("heavy", 0.0, 1000, 500), *(row("chatty", n, 10, 5) for n in range(9))]
    demand = demands(rows, output_weight=2.0)
    assert demand == {"heavy": 2000.0, "chatty": 180.0}
    assert light_tenants(demand) == {"chatty"}
