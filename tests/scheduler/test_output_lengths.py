"""How many tokens a request is expected to put out."""

from random import Random

import pytest

from scheduler.output_lengths import OBSERVATIONS_PER_FIT, WINDOW, OutputLengths


def observed(*lengths: int) -> OutputLengths:
    expected = OutputLengths(initial=256.0)
    for length in lengths:
        expected.observe(length)
    return expected


def test_expected_output_follows_the_finished_requests() -> None:
    """What is expected of a request is what requests put out lately, within its limit."""
    lengths = observed(*[40] * 200)

    assert lengths.expected_left(done=0, limit=None) == 40
    assert lengths.expected_left(done=0, limit=10) == 10
    assert lengths.expected_left(done=101, limit=100) == 0


def test_a_request_that_has_come_far_is_one_of_the_long_ones() -> None:
    """The expectation is conditioned on what is out already."""
    lengths = observed(*[10, 200] * 100)

    assert lengths.expected_left(done=0, limit=None) == pytest.approx(105, rel=0.01)
    assert lengths.expected_left(done=10, limit=None) == 190
    assert lengths.expected_left(done=300, limit=None) == 150


def test_before_any_has_finished_a_default_is_expected() -> None:
    """A new fleet expects the same of all, and never that a request is overdue."""
    lengths = OutputLengths(initial=256.0)

    assert lengths.expected_left(done=0, limit=None) == 256.0
    assert lengths.expected_left(done=400, limit=None) == 200.0


def test_old_lengths_are_forgotten(seed: int) -> None:
    """A window of recent ends decides, whatever was before."""
    old = Random(seed).choices(range(1000, 2000), k=500)
    lengths = observed(*old, *[7] * (WINDOW + OBSERVATIONS_PER_FIT))

    assert lengths.expected_left(done=0, limit=None) == 7
