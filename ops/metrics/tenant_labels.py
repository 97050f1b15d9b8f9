"""Tenants' names as metric labels: few of them, however many names clients think up.

Owns which tenants have a label of their own. A label costs memory here and in Prometheus for as
long as it lives, so it must not be a client's to make.
"""

from collections.abc import Iterable, Mapping

REST = "_other"  # no tenant can have this name: names begin with a letter or a digit
DEFAULT_MAX_TENANTS = 50
TAKEOVER_RATIO = 2.0  # a label changes hands only for clearly more: each change breaks two curves


class TenantLabels:
    """The label of each tenant's metrics.

    Configured tenants always have their own, others in the order they come until ``max_tenants``
    have one; the rest share ``REST``. ``renew`` hands labels on to tenants that get more service.
    """

    def __init__(
        self, configured: Iterable[str] = (), max_tenants: int = DEFAULT_MAX_TENANTS
    ) -> None:
        self._configured = frozenset(configured)
        self._named = set(self._configured)
        self._max_tenants = max_tenants

    def label(self, tenant: str) -> str:
        """The tenant's own label, given now if one is left, else ``REST``."""
        if tenant in self._named:
            return tenant
        if len(self._named) >= self._max_tenants:
            return REST
        self._named.add(tenant)
        return tenant

    def is_given(self, label: str) -> bool:
        return label == REST or label in self._named

    def renew(self, gained: Mapping[str, float]) -> None:
        """Hand labels on, from tenants that gained little of late to those that gained most.

        ``gained`` is service since the last renewal; whoever is not in it gained none. Without
        this the first names that come would keep their labels, and who floods now might have none.
        """
        holders = sorted(self._named - self._configured, key=lambda name: gained.get(name, 0.0))
        others = sorted(gained.keys() - self._named, key=lambda name: -gained[name])
        for holder, other in zip(holders, others, strict=False):
            if gained[other] <= TAKEOVER_RATIO * gained.get(holder, 0.0):
                return
            self._named.remove(holder)
            self._named.add(other)
