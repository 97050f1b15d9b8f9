"""Evenness is measured on what readings of a fleet say, over any interval between them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.settings import AppArgs
from ops.bench.errors import UnevenLoadError
from ops.bench.evenness import (
    backlogged,
    evenness,
    gap_bound,
    jain_index,
    peak_service,
    prior_gap_bound,
)
from tests.ops.bench.fleet_glances import glance


@given(st.lists(st.floats(0.001, 1e9), min_size=1, max_size=20), st.floats(0.001, 1000))
def test_jains_index_lies_between_one_share_and_one_whatever_the_unit(
    values: list[float], unit: float
) -> None:
    """Multiplying all by one number changes nothing."""
    index = jain_index(values)
    assert 1 / len(values) - 1e-9 <= index <= 1 + 1e-9
    assert jain_index([unit * value for value in values]) == pytest.approx(index)


def test_jains_index_of_known_shares() -> None:
    """Equal shares give 1, one of four that has it all gives a quarter."""
    assert jain_index([3.0, 3.0, 3.0]) == 1.0
    assert jain_index([8.0, 0.0, 0.0, 0.0]) == 0.25
    assert jain_index([0.0, 0.0]) == 1.0


def test_a_gap_in_the_middle_counts_though_the_end_is_even() -> None:
    """The largest difference is that over any interval."""
    glances = [
        glance(0.0, {"a": 100.0, "b": 0.0}),
        glance(1.0, {"a": 400.0, "b": 100.0}),
        glance(2.0, {"a": 420.0, "b": 350.0}),
        glance(3.0, {"a": 500.0, "b": 400.0}),
    ]
    found = evenness(glances, ["a", "b"])
    assert found.max_service_gap == 230  # from the first second to the second
    assert found.service == {"a": 400.0, "b": 400.0}
    assert found.jain_index == 1.0


def test_service_counts_by_weight() -> None:
    """Twice the service at twice the weight is even."""
    weights = {"heavy": 2.0, "light": 1.0}
    glances = [
        glance(0.0, {"heavy": 0.0, "light": 0.0}, weights=weights),
        glance(1.0, {"heavy": 200.0, "light": 100.0}, weights=weights),
    ]
    found = evenness(glances, ["heavy", "light"])
    assert (found.jain_index, found.max_service_gap) == (1.0, 0.0)


def test_evenness_begins_when_all_want_more() -> None:
    """Readings from before the last tenant has queued up say nothing of shares."""
    early = glance(0.0, {"a": 0.0, "b": 0.0}, idle=frozenset({"b"}))
    late = [glance(1.0, {"a": 9.0, "b": 0.0}), glance(2.0, {"a": 9.0, "b": 9.0})]
    assert backlogged([early, *late], ["a", "b"]) == late


@pytest.mark.parametrize("idle_at", [1, 2])
def test_a_tenant_that_stops_wanting_more_makes_the_run_worthless(idle_at: int) -> None:
    """Its small share would then be its own wish; the error names it."""
    glances = [
        glance(n, {"a": 0.0, "b": 0.0}, idle=frozenset({"b"} if n == idle_at else ()))
        for n in range(4)
    ]
    with pytest.raises(UnevenLoadError, match="tenant b did not want more"):
        backlogged(glances, ["a", "b"])


def test_a_moment_in_which_clients_are_behind_parts_a_run() -> None:
    """The longer part is what is looked at."""
    glances = [
        glance(n, {"a": 0.0, "b": 0.0}, idle=frozenset({"b"} if n == 1 else ())) for n in range(6)
    ]
    assert backlogged(glances, ["a", "b"]) == glances[2:]


def test_tenants_that_never_all_want_more_are_named() -> None:
    """One reading is too few as well."""
    with pytest.raises(UnevenLoadError, match="tenant a, b did not"):
        backlogged([glance(0.0, {"a": 0.0, "b": 0.0})], ["a", "b"])


def test_peak_service_is_that_of_the_busiest_span() -> None:
    """What was given between readings further apart is spread evenly."""
    glances = [glance(at_s, {"a": units}) for at_s, units in ((0, 0), (1, 100), (2, 500), (4, 600))]
    assert peak_service(glances, 1.0) == 400
    assert peak_service(glances, 0.5) == 200
    assert peak_service(glances, 2.0) == 500


def test_the_bound_is_that_of_vtc_for_what_happens_unseen() -> None:
    """Twice the quantum, the peak of an update's way there and back, and the longest prompt."""
    settings = AppArgs(exchange_s=0.1, fairness={"update_s": 0.2, "quantum": 500.0})  # type: ignore[arg-type]
    glances = [glance(at_s, {"a": 1000.0 * at_s}) for at_s in (0.0, 0.4, 0.8, 1.2)]
    assert gap_bound(glances, settings, longest_prompt=100) == pytest.approx(2 * (500 + 400 + 100))


@pytest.mark.parametrize(
    ("longest_request", "bound"), [(100, 2 * 2.0 * 3 * 4 * 100), (10, 2 * 5.0 * 60)]
)
def test_the_bound_before_any_run_is_the_larger_of_input_and_what_is_in_flight(
    longest_request: int, bound: float
) -> None:
    """Output in flight counts on all slots of all engines, the input of one request alone."""
    settings = AppArgs(
        replicas=3,
        max_num_seqs=4,
        fairness={"input_weight": 5.0, "output_weight": 2.0},  # type: ignore[arg-type]
    )
    assert prior_gap_bound(settings, 60, longest_request) == bound
