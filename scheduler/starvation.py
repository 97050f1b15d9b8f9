"""Nobody waits for ever, however low the policy ranks it.

Owns how long each tenant's requests have waited without running, and which of them are to run
before all others for a while. At most one request of a tenant at a time: were it all that have
waited too long, a tenant with a deep queue would, after that time, be ahead of everybody.
"""

from dataclasses import dataclass, field
from itertools import islice

from scheduler.tracking import TrackedRequest

# How long a request runs first, as a part of the longest wait: so much of an engine's seats goes,
# at most, to tenants that the policy would not serve at all.
RUN_SHARE = 1 / 16


@dataclass(slots=True)
class _TenantWaits:
    """``waiting`` since when, longest first; ``first`` is the one that runs before all others."""

    waiting: dict[str, float] = field(default_factory=dict)
    first: str | None = None
    runs_since_s: float | None = None


class StarvationGuard:
    """Picks, for each tenant, the request that has waited too long.

    A request either waits, in its tenant's ``waiting``, or runs. Of a tenant whose requests wait,
    the one that has waited longest runs first once that is ``max_wait_s``, for
    ``max_wait_s * RUN_SHARE``; then the next.
    """

    def __init__(self, max_wait_s: float) -> None:
        self.set_longest_wait(max_wait_s)
        self._tenants: dict[str, _TenantWaits] = {}
        self._first: set[str] = set()
        self._earliest_s = 0.0  # nobody has waited for longer

    def __contains__(self, request_id: str) -> bool:
        """Whether this request is to run before all others now."""
        return request_id in self._first

    @property
    def num_first(self) -> int:
        return len(self._first)

    def set_longest_wait(self, max_wait_s: float) -> None:
        """This is too long from now on, also for those who wait already."""
        self._max_wait_s = max_wait_s
        self._run_s = max_wait_s * RUN_SHARE

    def wait(self, request: TrackedRequest, now_s: float) -> None:
        """A request waits from now on: it has come, or was displaced."""
        waits = self._tenants.setdefault(request.tenant, _TenantWaits())
        waits.waiting.setdefault(request.request_id, now_s)
        if waits.first == request.request_id:
            waits.runs_since_s = None

    def run(self, request: TrackedRequest, now_s: float) -> None:
        """A request runs from now on."""
        waits = self._tenants.get(request.tenant)
        if waits is None:
            return
        waits.waiting.pop(request.request_id, None)
        if waits.first == request.request_id:
            waits.runs_since_s = now_s
        self._drop_if_idle(request.tenant, waits)

    def forget(self, request: TrackedRequest) -> None:
        """A request is no longer live."""
        waits = self._tenants.get(request.tenant)
        if waits is None:
            return
        waits.waiting.pop(request.request_id, None)
        if waits.first == request.request_id:
            self._step_back(waits)
        self._drop_if_idle(request.tenant, waits)

    def update(self, now_s: float) -> None:
        """Choose anew who runs first."""
        if not self._first and now_s - self._earliest_s < self._max_wait_s:
            return
        self._earliest_s = now_s
        for tenant, waits in list(self._tenants.items()):
            has_run = waits.runs_since_s is not None and now_s - waits.runs_since_s >= self._run_s
            if has_run:
                self._step_back(waits)
            if waits.first is None and waits.waiting:
                request_id, since_s = next(iter(waits.waiting.items()))
                if now_s - since_s >= self._max_wait_s:
                    waits.first = request_id
                    self._first.add(request_id)
            for since_s in islice(waits.waiting.values(), 1):
                self._earliest_s = min(self._earliest_s, since_s)
            self._drop_if_idle(tenant, waits)

    def _step_back(self, waits: _TenantWaits) -> None:
        assert waits.first is not None
        self._first.discard(waits.first)
        waits.first = waits.runs_since_s = None

    def _drop_if_idle(self, tenant: str, waits: _TenantWaits) -> None:
        if not waits.waiting and waits.first is None:
            self._tenants.pop(tenant, None)
