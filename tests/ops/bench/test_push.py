"""The benchmark of pushing: real pushes, of as many tenants as asked for."""

from argparse import Namespace

import pytest

from ops.bench import push
from ops.bench.push import Cost


def test_both_numbers_of_labels_are_measured() -> None:
    """Of 1,000 tenants 50 are pushed under their own labels by default, or every one of them."""
    keys = push.run(Namespace(tenants=1000, pushes=2, seed=0)).keys

    few, every = keys["default_labels"], keys["all_labelled"]
    assert (few["labels"], every["labels"]) == (50, 1000)
    assert 10 * few["series"] < every["series"]
    assert every["push_bytes"] > 20 * every["series"]
    assert 0 < few["push_cpu_ms"]["p50"] < every["push_cpu_ms"]["max"]


@pytest.mark.parametrize(("cpu_s", "interval_s"), [(0.01, 10.0), (0.4, 50.0)])
def test_the_interval_is_the_one_that_a_gateway_would_keep(cpu_s: float, interval_s: float) -> None:
    """Ten seconds as set, or as long as it takes to stay within the share of a core."""
    assert Cost(1, 1, 1, [cpu_s]).interval_s == pytest.approx(interval_s)
