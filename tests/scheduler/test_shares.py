"""Tenants' weights and what is refused of them."""

import pytest

from scheduler.errors import InvalidWeightError
from scheduler.shares import TenantShare, TenantWeights


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_cannot_divide_service_changes_nothing(weight: float) -> None:
    """One bad weight among good ones is named, and all old weights stay in force."""
    weights = TenantWeights(default=1.0)
    weights.replace({"acme": TenantShare(3.0)})

    with pytest.raises(InvalidWeightError, match=r"tenant bad: weight .* above 0"):
        weights.replace({"acme": TenantShare(5.0), "bad": TenantShare(weight)})

    assert weights["acme"] == 3.0


def test_tenants_not_configured_have_the_default_weight() -> None:
    """A tenant that is no longer among the configured ones falls back to the default."""
    weights = TenantWeights(default=2.0)
    weights.replace({"acme": TenantShare(3.0)})
    weights.replace({})

    assert (weights["acme"], weights["stranger"]) == (2.0, 2.0)


def test_the_default_weight_is_checked_too() -> None:
    """A default that cannot divide service is refused at once."""
    with pytest.raises(InvalidWeightError):
        TenantWeights(default=0.0)


def test_the_default_weight_changes_with_the_shares() -> None:
    """A new default is in force for tenants that are not configured; without one the old stays."""
    weights = TenantWeights(default=1.0)
    weights.replace({"a": TenantShare(3.0)}, default=2.0)
    assert (weights["a"], weights["b"]) == (3.0, 2.0)
    weights.replace({})
    assert weights["a"] == 2.0
