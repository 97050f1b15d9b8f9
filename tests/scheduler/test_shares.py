"""Tenants' shares and what is refused of them."""

import pytest

from scheduler.errors import InvalidQuotaError, InvalidWeightError
from scheduler.shares import TenantShare, TenantShares


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_that_cannot_divide_service_changes_nothing(weight: float) -> None:
    """One bad weight among good ones is named, and all old weights stay in force."""
    shares = TenantShares(TenantShare(1.0))
    shares.replace({"acme": TenantShare(3.0)})

    with pytest.raises(InvalidWeightError, match=r"tenant bad: weight .* above 0"):
        shares.replace({"acme": TenantShare(5.0), "bad": TenantShare(weight)})

    assert shares["acme"].weight == 3.0


def test_tenants_not_configured_have_the_default_weight() -> None:
    """A tenant that is no longer among the configured ones falls back to the default."""
    shares = TenantShares(TenantShare(2.0))
    shares.replace({"acme": TenantShare(3.0)})
    shares.replace({})

    assert (shares["acme"].weight, shares["stranger"].weight) == (2.0, 2.0)


def test_the_default_weight_is_checked_too() -> None:
    """A default that cannot divide service is refused at once."""
    with pytest.raises(InvalidWeightError):
        TenantShares(TenantShare(0.0))


def test_the_default_weight_changes_with_the_shares() -> None:
    """A new default is in force for tenants that are not configured; without one the old stays."""
    shares = TenantShares(TenantShare(1.0))
    shares.replace({"a": TenantShare(3.0)}, default=TenantShare(2.0))
    assert (shares["a"].weight, shares["b"].weight) == (3.0, 2.0)
    shares.replace({})
    assert shares["a"].weight == 2.0


@pytest.mark.parametrize(
    ("limit", "share"),
    [
        ("tokens_per_minute", TenantShare(tokens_per_minute=0)),
        ("max_concurrent", TenantShare(max_concurrent=0)),
    ],
)
def test_a_limit_that_lets_nothing_in_changes_nothing(limit: str, share: TenantShare) -> None:
    """A limit of nought is named, and all old shares stay in force."""
    shares = TenantShares()
    shares.replace({"acme": TenantShare(3.0)})

    with pytest.raises(InvalidQuotaError, match=rf"tenant bad: {limit} 0 must be above 0"):
        shares.replace({"acme": TenantShare(5.0), "bad": share})

    assert shares["acme"] == TenantShare(3.0)
