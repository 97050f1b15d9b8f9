"""Who has received how much service, counted from the engines' reports.

Owns the totals per tenant, and per engine the totals that have been counted so far. Reports
carry cumulative counts, so a lost one is made good by the next and a repeated one adds
nothing: single requests move the totals between full reports, and each full report settles
the difference to the engine's own totals. Ranks and counters are the policies' affair.
"""

from collections import OrderedDict
from collections.abc import Mapping

import msgspec


class Tokens(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """Prompt and output tokens processed; below 0 where more was counted than there was."""

    prompt: int = 0
    output: int = 0

    def plus(self, other: "Tokens") -> "Tokens":
        return Tokens(self.prompt + other.prompt, self.output + other.output)

    def minus(self, other: "Tokens") -> "Tokens":
        return Tokens(self.prompt - other.prompt, self.output - other.output)


class EngineAccount(msgspec.Struct, array_like=True):
    """What has been counted of one engine, by tenant, up to ``step``."""

    step: int = -1
    counted: dict[str, Tokens] = {}
    has_baseline: bool = False  # its totals have been seen, so what they grow by is news


class LedgerCheckpoint(msgspec.Struct, array_like=True, frozen=True):
    """The ledger's whole state."""

    tenants: dict[str, Tokens]
    unlisted: Tokens
    engines: dict[str, EngineAccount]


class ServiceLedger:
    """Tokens processed, by tenant and engine.

    ``total`` is always the sum over the tenants listed and those no longer listed. The
    tenants served longest ago leave the list beyond ``max_tenants``; accounts of engines
    that have gone are kept for their return, the latest ``max_departed`` of them.
    """

    def __init__(self, *, max_tenants: int, max_departed: int = 1000) -> None:
        self._max_tenants = max_tenants
        self._max_departed = max_departed
        self._tenants: OrderedDict[str, Tokens] = OrderedDict()  # served longest ago first
        self._unlisted = Tokens()
        self._engines: dict[str, EngineAccount] = {}
        self._departed: OrderedDict[str, EngineAccount] = OrderedDict()

    @property
    def tenants(self) -> Mapping[str, Tokens]:
        return self._tenants

    @property
    def total(self) -> Tokens:
        total = self._unlisted
        for tokens in self._tenants.values():
            total = total.plus(tokens)
        return total

    def open(self, engine_id: str) -> None:
        """Begin to count an engine, where it was left off if it was ever counted before."""
        if engine_id in self._departed:
            self._engines[engine_id] = self._departed.pop(engine_id)
        self._engines.setdefault(engine_id, EngineAccount())

    def close(self, engine_id: str) -> None:
        """Stop counting an engine; what was counted is kept for its return."""
        self._departed[engine_id] = self._engines.pop(engine_id)
        while len(self._departed) > self._max_departed:
            self._departed.popitem(last=False)

    def step(self, engine_id: str) -> int:
        """The engine's step up to which its work has been counted."""
        return self._engines[engine_id].step

    def advance(self, engine_id: str, step: int) -> None:
        self._engines[engine_id].step = step

    def restart(self, engine_id: str) -> None:
        """The engine counts from nought again: all of its next totals are news."""
        self._engines[engine_id].counted.clear()

    def add(self, engine_id: str, tenant: str, tokens: Tokens) -> None:
        """Count tokens that one request has moved by."""
        counted = self._engines[engine_id].counted
        counted[tenant] = counted.get(tenant, _NONE).plus(tokens)
        self._credit(tenant, tokens)

    def settle(self, engine_id: str, totals: Mapping[str, tuple[int, int]]) -> dict[str, Tokens]:
        """Bring the count to the engine's own totals; return what was missing, by tenant.

        The first totals of an engine without an account are its history from before this
        ledger: they are counted, but nothing of them is returned. A tenant that the engine
        no longer lists is one that it counts from nought when it comes back.
        """
        account = self._engines[engine_id]
        reported = {tenant: Tokens(*tokens) for tenant, tokens in totals.items()}
        missing = {
            tenant: tokens.minus(account.counted.get(tenant, _NONE))
            for tenant, tokens in reported.items()
            if tokens != account.counted.get(tenant, _NONE)
        }
        for tenant, tokens in missing.items():
            self._credit(tenant, tokens)
        account.counted = reported
        is_history = not account.has_baseline
        account.has_baseline = True
        return {} if is_history else missing

    def checkpoint(self) -> LedgerCheckpoint:
        accounts = {**self._departed, **self._engines}
        return LedgerCheckpoint(
            tenants=dict(self._tenants),
            unlisted=self._unlisted,
            engines={engine_id: _copy(account) for engine_id, account in accounts.items()},
        )

    def restore(self, checkpoint: LedgerCheckpoint) -> None:
        """Go on from a checkpoint; every engine in it counts as gone until it is opened."""
        self._tenants.update(checkpoint.tenants)
        self._unlisted = checkpoint.unlisted
        for engine_id, account in checkpoint.engines.items():
            self._departed[engine_id] = _copy(account)

    def _credit(self, tenant: str, tokens: Tokens) -> None:
        self._tenants[tenant] = self._tenants.get(tenant, _NONE).plus(tokens)
        self._tenants.move_to_end(tenant)
        while len(self._tenants) > self._max_tenants:
            _, unlisted = self._tenants.popitem(last=False)
            self._unlisted = self._unlisted.plus(unlisted)


_NONE = Tokens()


def _copy(account: EngineAccount) -> EngineAccount:
    return EngineAccount(account.step, dict(account.counted), account.has_baseline)
