"""Tenants' names as metric labels: few of them, however many names clients think up.

Owns which tenants have a label of their own. A label costs memory here and in Prometheus for as
long as it lives, so it must not be a client's to make.
"""

from collections.abc import Iterable

REST = "_other"  # no tenant can have this name: names begin with a letter or a digit
DEFAULT_MAX_TENANTS = 50


class TenantLabels:
    """The label of each tenant's metrics.

    Configured tenants always have their own, others in the order they come until ``max_tenants``
    have one; the rest share ``REST``. A label once given stays, so that counters never fall.
    """

    def __init__(
        self, configured: Iterable[str] = (), max_tenants: int = DEFAULT_MAX_TENANTS
    ) -> None:
        self._named = set(configured)
        self._max_tenants = max_tenants

    def label(self, tenant: str) -> str:
        """The tenant's own label, given now if one is left, else ``REST``."""
        if tenant in self._named:
            return tenant
        if len(self._named) >= self._max_tenants:
            return REST
        self._named.add(tenant)
        return tenant
