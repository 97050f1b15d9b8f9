"""The memory that requests will need at their peak."""

from hypothesis import given
from hypothesis import strategies as st

from scheduler.lookahead import peak_tokens

REQUESTS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 50)), max_size=8)


def stepped_peak(requests: list[tuple[int, int]]) -> int:
    """The same by playing it: every request holds what it has, grows, and goes when it is done."""
    most = max((left for left, _ in requests), default=0)
    return max(
        (sum(used + step for left, used in requests if left >= step) for step in range(most + 1)),
        default=0,
    )


@given(requests=REQUESTS)
def test_the_peak_is_that_of_the_played_out_future(requests: list[tuple[int, int]]) -> None:
    """Whatever the requests, the prediction is what playing all their steps gives."""
    assert peak_tokens(requests) == stepped_peak(requests)


def test_requests_that_end_in_turn_need_less_than_all_their_ends_together() -> None:
    """One that is nearly done has gone when the other is at its longest."""
    assert peak_tokens([(100, 10), (1, 100)]) == 112
