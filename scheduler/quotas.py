"""Quotas: what a tenant may take by its own limits, tokens a minute and requests at once.

Owns reservations. From the moment a request is let in, all that it may still take counts against
its tenant's limit; it turns into use as engines report tokens, and what is left is given back when
the request ends. So however many requests come at once, none is let in on room that another has
been promised. It is how card payments are authorised first and captured later. Use counts in a
sliding minute: a bucket that refills would let twice the limit through in one.

The limits are `scheduler.shares`. Who waits for whom is the policies' affair: a tenant within its
limits is never refused here, however busy the engines are.
"""

from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from heapq import nlargest
from itertools import islice

from scheduler.admission import AdmitRequest
from scheduler.errors import QuotaExceededError
from scheduler.shares import TenantShare, TenantShares
from scheduler.tracking import TrackedRequest

WINDOW_S = 60
SHORTEST_RETRY_S = 1.0
_RECENT = 8  # requests that a tenant's means mostly follow

Windows = Mapping[str, list[tuple[int, int]]]  # by tenant: how long ago in seconds, and tokens


@dataclass(frozen=True, slots=True)
class QuotaUse:
    """Where a tenant stands against its ``tokens_per_minute``."""

    used_tokens: int = 0  # in the last minute
    reserved_tokens: int = 0


@dataclass(slots=True)
class _Reservation:
    tenant: str
    left_tokens: int
    since_s: float


@dataclass(slots=True)
class _Window:
    """Tokens by the second, oldest first; ``total`` is their sum.

    A second counts until its last moment is a minute ago: too long by a second at most, and
    never too short.
    """

    seconds: list[tuple[int, int]] = field(default_factory=list)
    total: int = 0

    def add(self, now_s: float, tokens: int) -> None:
        second = int(now_s)
        if self.seconds and self.seconds[-1][0] == second:
            tokens_before = self.seconds.pop()[1]
            self.seconds.append((second, tokens_before + tokens))
        else:
            self.seconds.append((second, tokens))
        self.total += tokens

    def slide(self, now_s: float) -> None:
        while self.seconds and _leaves_at_s(self.seconds[0][0]) <= now_s:
            self.total -= self.seconds.pop(0)[1]

    def tokens(self, now_s: float) -> int:
        return sum(tokens for second, tokens in self.seconds if _leaves_at_s(second) > now_s)

    def falls_by_at_s(self, tokens: int) -> float | None:
        """When at least so many tokens will have left; None if there are not so many."""
        for second, gone in self.seconds:
            tokens -= gone
            if tokens <= 0:
                return _leaves_at_s(second)
        return None


def _leaves_at_s(second: int) -> float:
    return second + 1 + WINDOW_S


@dataclass(slots=True)
class _Account:
    """One tenant's live requests, what they may still take, and what was taken lately."""

    window: _Window = field(default_factory=_Window)
    live: int = 0
    reserved_tokens: int = 0
    mean_live_s: float = SHORTEST_RETRY_S  # of a request, from its reservation to its end
    mean_output_tokens: float = 256.0

    @property
    def is_idle(self) -> bool:
        return not self.live and not self.window.total


class Quotas:
    """Reservations and use of all tenants; a tenant's reservations are those of its live requests.

    Of requests that say how much they may take, use and reservations together never pass a
    tenant's ``tokens_per_minute`` by letting one in; tokens that nobody could foresee (open-ended
    output, requests let in elsewhere, a prompt computed again when its engine was lost) count when
    they come. Nothing is kept of a tenant with no live request and no use in the last minute,
    rejections aside: of these, the ``max_tenants`` latest.
    """

    def __init__(
        self, shares: TenantShares, *, clock: Callable[[], float], max_tenants: int
    ) -> None:
        """``clock`` never runs back."""
        self._shares = shares
        self._now_s = clock
        self._max_tenants = max_tenants
        self._live: dict[str, _Reservation] = {}
        self._accounts: OrderedDict[str, _Account] = OrderedDict()  # next to be looked over first
        self._rejected: OrderedDict[str, int] = OrderedDict()  # longest ago first

    def __len__(self) -> int:
        """Tenants that something is kept of, rejections aside."""
        return len(self._accounts)

    def use(self, tenant: str) -> QuotaUse:
        account = self._accounts.get(tenant)
        if account is None:
            return QuotaUse()
        return QuotaUse(account.window.tokens(self._now_s()), account.reserved_tokens)

    @property
    def rejected(self) -> Mapping[str, int]:
        """Requests refused, by tenant."""
        return self._rejected

    def reserve(self, request: AdmitRequest) -> None:
        """Let a request in, with all it may take; one that is in already stays as it is.

        Raises:
            QuotaExceededError: its tenant is past a limit of its own. Nothing is reserved.
        """
        if request.request_id in self._live:
            return
        self._drop_idle()
        share = self._shares[request.tenant]
        account = self._accounts.get(request.tenant) or _Account()
        account.window.slide(self._now_s())
        output_limit = None if request.is_open_ended else request.max_output_tokens
        wanted = request.prompt_tokens + _output_left(account, 0, output_limit)
        if output_limit is None and share.tokens_per_minute is not None:
            # A guess is no reason to refuse for good; the prompt and a first token are certain.
            wanted = max(request.prompt_tokens + 1, min(wanted, share.tokens_per_minute))
        refused = self._refusal(request.tenant, share, account, wanted)
        if refused:
            self._count_rejected(request.tenant)
            raise refused
        self._open(request.request_id, request.tenant, account, wanted)

    def take_in(self, request: TrackedRequest) -> None:
        """Count a request that is live whatever the limits say; once is enough."""
        if request.request_id in self._live:
            return
        account = self._accounts.get(request.tenant) or _Account()
        output_limit = None if request.is_open_ended else request.max_output_tokens
        left = request.prompt_left + _output_left(account, request.output_done, output_limit)
        self._open(request.request_id, request.tenant, account, left)

    def charge(self, request_id: str, tokens: int) -> None:
        """Tokens of a live request have been processed."""
        reservation = self._live[request_id]
        account = self._accounts[reservation.tenant]
        settled = min(tokens, reservation.left_tokens)
        reservation.left_tokens -= settled
        account.reserved_tokens -= settled
        if self._shares[reservation.tenant].tokens_per_minute is not None:
            now_s = self._now_s()
            account.window.slide(now_s)
            account.window.add(now_s, tokens)

    def observe(self, tenant: str, output_tokens: int) -> None:
        """A live request's output has come to its natural end, after so many tokens."""
        account = self._accounts[tenant]
        account.mean_output_tokens += (output_tokens - account.mean_output_tokens) / _RECENT

    def release(self, request_id: str) -> None:
        """A request is no longer live: what it has not taken is its tenant's again."""
        reservation = self._live.pop(request_id)
        account = self._accounts[reservation.tenant]
        now_s = self._now_s()
        account.live -= 1
        account.reserved_tokens -= reservation.left_tokens
        account.mean_live_s += (now_s - reservation.since_s - account.mean_live_s) / _RECENT
        account.window.slide(now_s)
        if account.is_idle:
            del self._accounts[reservation.tenant]

    def checkpoint(self) -> Windows:
        """Use in the last minute; reservations follow from the live requests."""
        now_s = self._now_s()
        used = {
            tenant: [
                (int(now_s) - second, tokens)
                for second, tokens in account.window.seconds
                if _leaves_at_s(second) > now_s
            ]
            for tenant, account in self._accounts.items()
            if account.window.tokens(now_s)
        }
        if len(used) <= self._max_tenants:
            return used
        return dict(nlargest(self._max_tenants, used.items(), key=_total))

    def restore(self, windows: Windows) -> None:
        """Go on from a checkpoint, as if it had been taken just now."""
        now_s = self._now_s()
        for tenant, seconds in windows.items():
            account = self._accounts.setdefault(tenant, _Account())
            for age_s, tokens in seconds:
                account.window.add(int(now_s) - age_s, tokens)

    def _open(self, request_id: str, tenant: str, account: _Account, tokens: int) -> None:
        self._accounts[tenant] = account
        account.live += 1
        account.reserved_tokens += tokens
        self._live[request_id] = _Reservation(tenant, tokens, self._now_s())

    def _refusal(
        self, tenant: str, share: TenantShare, account: _Account, wanted: int
    ) -> QuotaExceededError | None:
        most_tokens, most_live = share.tokens_per_minute, share.max_concurrent
        if most_tokens is not None and wanted > most_tokens:
            return QuotaExceededError(tenant, "tokens_per_minute", most_tokens, wanted, WINDOW_S)
        if most_live is not None and account.live >= most_live:
            # Spread over time as they mostly are, one of the live requests ends so soon.
            retry_s = max(SHORTEST_RETRY_S, account.mean_live_s / account.live)
            return QuotaExceededError(tenant, "max_concurrent", most_live, 1, retry_s)
        if most_tokens is None:
            return None
        excess = account.window.total + account.reserved_tokens + wanted - most_tokens
        if excess <= 0:
            return None
        retry_s = self._room_in_s(account, excess)
        return QuotaExceededError(tenant, "tokens_per_minute", most_tokens, wanted, retry_s)

    def _room_in_s(self, account: _Account, excess: int) -> float:
        """How long until the minute has room for so many tokens more."""
        room_at_s = account.window.falls_by_at_s(excess)
        if room_at_s is not None:
            return max(SHORTEST_RETRY_S, room_at_s - self._now_s())
        # Reservations stand in the way. What they leave over comes back when requests end.
        return max(SHORTEST_RETRY_S, min(account.mean_live_s, WINDOW_S))

    def _count_rejected(self, tenant: str) -> None:
        self._rejected[tenant] = self._rejected.get(tenant, 0) + 1
        self._rejected.move_to_end(tenant)
        if len(self._rejected) > self._max_tenants:
            self._rejected.popitem(last=False)

    def _drop_idle(self) -> None:
        """Look over two tenants for each that may come: idle ones cannot pile up."""
        now_s = self._now_s()
        for tenant in list(islice(self._accounts, 2)):
            account = self._accounts[tenant]
            account.window.slide(now_s)
            if account.is_idle:
                del self._accounts[tenant]
            else:
                self._accounts.move_to_end(tenant)


def _output_left(account: _Account, done: int, limit: int | None) -> int:
    """Output tokens to reserve: all that a stated limit leaves, else what is expected."""
    if limit is None:
        return round(account.mean_output_tokens)
    return max(0, limit - done)


def _total(item: tuple[str, list[tuple[int, int]]]) -> int:
    return sum(tokens for _, tokens in item[1])
