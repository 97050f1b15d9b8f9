"""What a tenant is entitled to.

Owns the checked entitlements of the tenants; what they are used for is the policies' affair, and
that of quotas.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from scheduler.errors import InvalidQuotaError, InvalidWeightError


class ServiceClass(Enum):
    """Whether somebody waits for the answer."""

    INTERACTIVE = "interactive"
    BATCH = "batch"


@dataclass(frozen=True, slots=True)
class TenantShare:
    """One tenant's entitlement: service goes to busy tenants in proportion to their weights.

    The limits are the tenant's own; None is no limit.
    """

    weight: float = 1.0
    service_class: ServiceClass = ServiceClass.INTERACTIVE
    tokens_per_minute: int | None = None
    max_concurrent: int | None = None  # live requests


class TenantShares:
    """The share of every tenant, configured or not. All weights are finite and above 0."""

    def __init__(self, default: TenantShare | None = None) -> None:
        self._default = default or TenantShare()
        _check("(default)", self._default)
        self._shares: dict[str, TenantShare] = {}

    def __getitem__(self, tenant: str) -> TenantShare:
        return self._shares.get(tenant, self._default)

    @property
    def configured(self) -> Mapping[str, TenantShare]:
        return self._shares

    def replace(
        self, shares: Mapping[str, TenantShare], *, default: TenantShare | None = None
    ) -> None:
        """Use these shares from now on, and the default for tenants that are not among them.

        ``default`` is a new default; the old one stays where none is given.

        Raises:
            InvalidWeightError: a weight is not a finite number above 0. The old shares stay.
            InvalidQuotaError: a limit is not above 0. The old shares stay.
        """
        new_default = default or self._default
        _check("(default)", new_default)
        for tenant, share in shares.items():
            _check(tenant, share)
        self._default = new_default
        self._shares = dict(shares)


def _check(tenant: str, share: TenantShare) -> None:
    if not (math.isfinite(share.weight) and share.weight > 0):
        raise InvalidWeightError(tenant, share.weight)
    for limit in ("tokens_per_minute", "max_concurrent"):
        value = getattr(share, limit)
        if value is not None and value <= 0:
            raise InvalidQuotaError(tenant, limit, value)
