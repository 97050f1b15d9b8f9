"""What a tenant is entitled to.

Owns the checked weights of the tenants; what they are used for is the policies' affair.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from scheduler.errors import InvalidWeightError


@dataclass(frozen=True, slots=True)
class TenantShare:
    """One tenant's entitlement: service goes to busy tenants in proportion to their weights."""

    weight: float = 1.0


class TenantWeights:
    """The weight of every tenant, configured or not. All are finite and above 0."""

    def __init__(self, default: float = 1.0) -> None:
        _check("(default)", default)
        self._default = default
        self._weights: dict[str, float] = {}

    def __getitem__(self, tenant: str) -> float:
        return self._weights.get(tenant, self._default)

    @property
    def configured(self) -> Mapping[str, float]:
        return self._weights

    def replace(self, shares: Mapping[str, TenantShare], *, default: float | None = None) -> None:
        """Use these weights from now on, and the default for tenants that are not among them.

        ``default`` is a new default; the old one stays where none is given.

        Raises:
            InvalidWeightError: a weight is not a finite number above 0. The old ones stay.
        """
        new_default = self._default if default is None else default
        _check("(default)", new_default)
        for tenant, share in shares.items():
            _check(tenant, share.weight)
        self._default = new_default
        self._weights = {tenant: share.weight for tenant, share in shares.items()}


def _check(tenant: str, weight: float) -> None:
    if not (math.isfinite(weight) and weight > 0):
        raise InvalidWeightError(tenant, weight)
