"""One look at a running service: ``GET /v1/fairness``, read into plain values.

Owns the address, the key and what can go wrong on the way. The answer's fields are
``scheduler.snapshot``'s; what they do not have, because the service is of another release, counts
as nought. What changes from one look to the next is computed in ``app.top_rates``.
"""

import http.client
import urllib.error
import urllib.request
from collections.abc import Callable
from http import HTTPStatus
from time import monotonic

import msgspec

from app.errors import ServiceAwayError, ServiceRefusesError, UsageError

REPLY_S = 5.0

# A proxy of the environment knows nothing of this machine's own addresses.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class TenantNow(msgspec.Struct, frozen=True):
    """One tenant. Tokens and service are sums since the service began."""

    weight: float = 1.0
    service_class: str | None = msgspec.field(name="class", default=None)
    entitled_share: float = 0.0
    rank: int | None = None
    running: int = 0
    waiting: int = 0
    service: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    rejected: int = 0


class SwitchesNow(msgspec.Struct, frozen=True):
    """Sums since the engine began."""

    swaps_out: int = 0
    swaps_in: int = 0
    blocks_out: int = 0
    blocks_in: int = 0
    recomputed_tokens: int = 0
    stall_s: float = 0.0


class EngineNow(msgspec.Struct, frozen=True):
    """One engine. The load is in service units that its requests are expected to take yet."""

    load: float = 0.0
    running: int = 0
    waiting: int = 0
    max_num_seqs: int = 0
    draining: bool = False
    blocks_used: int = 0
    blocks_total: int = 0
    host_blocks_used: int = 0
    host_blocks_total: int = 0
    switches: SwitchesNow = SwitchesNow()


class TotalsNow(msgspec.Struct, frozen=True):
    """All tenants, those no longer listed as well. Who is in line waits, on no engine yet."""

    service: float = 0.0
    prompt_tokens: int = 0
    output_tokens: int = 0
    running: int = 0
    waiting: int = 0
    in_line: int = 0


class Fairness(msgspec.Struct, frozen=True):
    """The whole answer. Without a policy it is that of a gateway that knows no router yet."""

    policy: str = ""
    tenants: dict[str, TenantNow] = {}
    engines: dict[str, EngineNow] = {}
    totals: TotalsNow = TotalsNow()
    refused_settings: str | None = None  # why the newest settings are not in force


class Look(msgspec.Struct, frozen=True):
    """What the service said at ``at_s`` of this process's clock."""

    at_s: float
    fairness: Fairness


class FairnessClient:
    """Asks one service. ``key`` is a tenant's API key, where the service asks for one."""

    def __init__(
        self, url: str, key: str | None = None, clock: Callable[[], float] = monotonic
    ) -> None:
        if not url.startswith(("http://", "https://")):
            raise UsageError(f"--url {url}: http://HOST:PORT is wanted")
        self.url = url.rstrip("/")
        headers = {} if key is None else {"Authorization": f"Bearer {key}"}
        self._request = urllib.request.Request(f"{self.url}/v1/fairness", headers=headers)  # noqa: S310  (checked above)
        self._now_s = clock

    def look(self) -> Look:
        """Ask once.

        Raises:
            ServiceAwayError: no answer; the next time there may be one.
            ServiceRefusesError: an answer, but to something else than was asked.
        """
        try:
            with _direct.open(self._request, timeout=REPLY_S) as reply:
                body = reply.read()
        except urllib.error.HTTPError as error:
            error.close()  # it is the reply, and its connection
            raise self._refused(error) from None
        except (OSError, http.client.HTTPException) as error:
            raise ServiceAwayError(self.url, _reason(error)) from None
        at_s = self._now_s()
        try:
            fairness = msgspec.json.decode(body, type=Fairness)
        except msgspec.DecodeError:
            raise ServiceRefusesError(self.url, "this is no FastSwitch service") from None
        if not fairness.policy:
            raise ServiceAwayError(self.url, "its router has not answered yet")
        return Look(at_s, fairness)

    def _refused(self, error: urllib.error.HTTPError) -> ServiceAwayError | ServiceRefusesError:
        if error.code >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return ServiceAwayError(self.url, f"it answers {error.code} {error.reason}")
        if error.code == HTTPStatus.UNAUTHORIZED:
            return ServiceRefusesError(self.url, "it asks for a tenant's API key: --key KEY")
        return ServiceRefusesError(
            self.url, f"this is no FastSwitch service: it answers {error.code} {error.reason}"
        )


def _reason(error: Exception) -> str:
    """In words; an OSError's own text has its number in front, which helps nobody."""
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
