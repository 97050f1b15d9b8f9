"""Quotas: reservations and use against a tenant's own limits, and what a refusal tells."""

from collections.abc import Mapping
from math import inf
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scheduler.admission import AdmitRequest
from scheduler.clock import SteadyClock
from scheduler.errors import QuotaExceededError
from scheduler.quotas import SHORTEST_RETRY_S, WINDOW_S, Quotas, QuotaUse, Windows
from scheduler.shares import TenantShare, TenantShares
from scheduler.tracking import TrackedRequest, announced


class HeldClock:
    """A clock that the test moves."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


class Desk:
    """Quotas with limits and time that a test moves."""

    def __init__(
        self,
        *,
        max_tenants: int = 100,
        tokens_per_minute: int | None = None,
        max_concurrent: int | None = None,
    ) -> None:
        self.clock = HeldClock()
        limits = TenantShare(tokens_per_minute=tokens_per_minute, max_concurrent=max_concurrent)
        self.shares = TenantShares(limits)
        now_s = SteadyClock(self.clock)
        self.quotas = Quotas(self.shares, clock=now_s, max_tenants=max_tenants)

    def refused(self, request: AdmitRequest) -> QuotaExceededError:
        with pytest.raises(QuotaExceededError) as refused:
            self.quotas.reserve(request)
        return refused.value

    def serve(self, request_id: str, tokens: int) -> None:
        """One whole request that takes so many tokens."""
        self.quotas.reserve(ask(request_id, tokens=(tokens - 1, 1)))
        self.quotas.charge(request_id, tokens)
        self.quotas.release(request_id)


def ask(
    request_id: str,
    tenant: str = "acme",
    *,
    tokens: tuple[int, int] = (10, 10),
    is_open_ended: bool = False,
) -> AdmitRequest:
    """A request of so many prompt tokens that may put out so many."""
    return AdmitRequest(
        request_id=request_id,
        tenant=tenant,
        conversation=None,
        prompt_tokens=tokens[0],
        max_output_tokens=tokens[1],
        arrival_s=0.0,
        is_open_ended=is_open_ended,
    )


def tracked(request: AdmitRequest, **changes: Any) -> TrackedRequest:
    live = announced(request, frozenset(), 0.0)
    for name, value in changes.items():
        setattr(live, name, value)
    return live


def test_what_a_request_may_still_take_counts_from_the_start() -> None:
    """Room that one request has been promised is no other's, before a token is processed."""
    desk = Desk(tokens_per_minute=100)
    desk.quotas.reserve(ask("r1", tokens=(30, 30)))

    assert desk.refused(ask("r2", tokens=(20, 21))).limit == "tokens_per_minute"
    desk.quotas.reserve(ask("r3", tokens=(20, 20)))
    assert desk.quotas.use("acme") == QuotaUse(used_tokens=0, reserved_tokens=100)


def test_processed_tokens_turn_from_reserved_to_used() -> None:
    """A token counts once: reserved until it is processed, used from then on."""
    desk = Desk(tokens_per_minute=100)
    desk.quotas.reserve(ask("r1", tokens=(30, 30)))
    desk.quotas.charge("r1", 40)

    assert desk.quotas.use("acme") == QuotaUse(used_tokens=40, reserved_tokens=20)


def test_the_end_of_a_request_gives_back_what_it_has_not_taken() -> None:
    """Whether it finished early, was aborted or was lost."""
    desk = Desk(tokens_per_minute=100)
    desk.quotas.reserve(ask("r1", tokens=(30, 70)))
    desk.quotas.charge("r1", 40)
    desk.quotas.release("r1")

    assert desk.quotas.use("acme") == QuotaUse(used_tokens=40, reserved_tokens=0)
    desk.quotas.reserve(ask("r2", tokens=(30, 30)))


def test_use_leaves_after_a_minute() -> None:
    """Not a moment before the last token of a second is a minute old."""
    desk = Desk(tokens_per_minute=100)
    desk.clock.now_s += 0.5
    desk.serve("r1", 100)

    desk.clock.now_s += WINDOW_S
    assert desk.refused(ask("r2", tokens=(1, 1))).retry_after_s == SHORTEST_RETRY_S
    desk.clock.now_s += 0.5
    desk.quotas.reserve(ask("r2", tokens=(50, 50)))


def test_a_refusal_says_when_there_will_be_room() -> None:
    """When enough of what was used has left the minute for this request, and not for less."""
    desk = Desk(tokens_per_minute=100)
    desk.serve("r1", 60)
    desk.clock.now_s += 20
    desk.serve("r2", 40)

    small, large = ask("r3", tokens=(10, 50)), ask("r4", tokens=(10, 51))
    assert desk.refused(small).retry_after_s == pytest.approx(WINDOW_S + 1 - 20)
    assert desk.refused(large).retry_after_s == pytest.approx(WINDOW_S + 1)
    desk.clock.now_s += desk.refused(small).retry_after_s
    desk.quotas.reserve(small)


def test_where_reservations_stand_in_the_way_a_requests_usual_time_is_told() -> None:
    """Nobody knows when a live request ends; the tenant's last ones are the best guess."""
    desk = Desk(tokens_per_minute=100)
    for number in range(100):
        desk.quotas.reserve(ask(f"r{number}"))
        desk.quotas.charge(f"r{number}", 1)
        desk.clock.now_s += 8
        desk.quotas.release(f"r{number}")

    desk.quotas.reserve(ask("long", tokens=(40, 40)))
    refused = desk.refused(ask("next", tokens=(10, 20)))
    assert refused.retry_after_s == pytest.approx(8, rel=0.01)


def test_a_request_that_is_too_large_by_itself_is_told_so() -> None:
    """Waiting would not help: the message says what would."""
    refused = Desk(tokens_per_minute=100).refused(ask("r1", tokens=(90, 11)))

    assert refused.is_for_good
    assert "this request alone may take 101 tokens" in str(refused)
    assert "tokens_per_minute is 100" in str(refused)
    assert "lower max_tokens" in str(refused)


def test_so_many_requests_are_live_and_no_more() -> None:
    """The next one is refused until one has ended."""
    desk = Desk(max_concurrent=2)
    desk.quotas.reserve(ask("r1"))
    desk.quotas.reserve(ask("r2"))

    refused = desk.refused(ask("r3"))
    assert (refused.limit, refused.most, refused.is_for_good) == ("max_concurrent", 2, False)
    assert "tenant acme has reached its max_concurrent of 2; try again in 1 s" in str(refused)
    desk.quotas.release("r1")
    desk.quotas.reserve(ask("r3"))


def test_a_refusal_reserves_nothing() -> None:
    """And is counted."""
    desk = Desk(tokens_per_minute=100, max_concurrent=1)
    desk.quotas.reserve(ask("r1"))
    desk.refused(ask("r2"))
    desk.refused(ask("r3", tokens=(90, 90)))

    assert desk.quotas.use("acme").reserved_tokens == 20
    assert desk.quotas.rejected == {"acme": 2}


def test_tenants_have_limits_of_their_own() -> None:
    """Who is past one does not stand in another's way, and who has none is never refused."""
    desk = Desk(max_concurrent=1)
    desk.shares.replace({"free": TenantShare()})
    desk.quotas.reserve(ask("r1", "acme"))
    desk.quotas.reserve(ask("r2", "other"))
    for number in range(50):
        desk.quotas.reserve(ask(f"free-{number}", "free", tokens=(10**6, 10**6)))

    assert desk.refused(ask("r3", "acme")).tenant == "acme"


def test_a_live_request_is_reserved_once() -> None:
    """Asked for again, by a gateway that lost the answer or the engine, it keeps what it has."""
    desk = Desk(tokens_per_minute=30, max_concurrent=1)
    desk.quotas.reserve(ask("r1"))
    desk.quotas.charge("r1", 5)
    desk.quotas.reserve(ask("r1"))
    desk.quotas.take_in(tracked(ask("r1")))

    assert desk.quotas.use("acme") == QuotaUse(used_tokens=5, reserved_tokens=15)


def test_open_ended_requests_reserve_what_the_tenant_usually_takes() -> None:
    """Not the model's bound, which hardly any answer reaches."""
    desk = Desk(tokens_per_minute=10_000)
    desk.quotas.reserve(ask("first"))
    for _ in range(1000):
        desk.quotas.observe("acme", 40)

    desk.quotas.reserve(ask("r1", tokens=(10, 8000), is_open_ended=True))
    assert desk.quotas.use("acme").reserved_tokens == 20 + 10 + 40


def test_open_ended_output_beyond_what_was_expected_counts_as_it_comes() -> None:
    """The reservation is used up, then use grows on its own."""
    desk = Desk(tokens_per_minute=1000)
    desk.quotas.reserve(ask("r1", tokens=(10, 8000), is_open_ended=True))
    desk.quotas.charge("r1", 900)

    assert desk.quotas.use("acme") == QuotaUse(used_tokens=900, reserved_tokens=0)
    assert desk.refused(ask("r2", tokens=(90, 11))).limit == "tokens_per_minute"


def test_an_expectation_alone_never_refuses_for_good() -> None:
    """An open-ended request whose prompt fits gets in when the minute is free."""
    desk = Desk(tokens_per_minute=100)
    desk.quotas.reserve(ask("r1", tokens=(50, 8000), is_open_ended=True))

    assert desk.quotas.use("acme").reserved_tokens == 100
    assert desk.refused(ask("r2", tokens=(100, 8000), is_open_ended=True)).is_for_good


def test_requests_let_in_elsewhere_count() -> None:
    """Those adopted from a report or restored: nobody asked, but there they are."""
    desk = Desk(tokens_per_minute=100, max_concurrent=2)
    desk.quotas.take_in(tracked(ask("r1", tokens=(40, 40)), prompt_done=40, output_done=10))
    desk.quotas.take_in(tracked(ask("r2", tokens=(40, 40))))
    desk.quotas.take_in(tracked(ask("r3", tokens=(40, 40))))

    assert desk.quotas.use("acme").reserved_tokens == 30 + 80 + 80
    assert desk.refused(ask("r4", tokens=(1, 1))).limit == "max_concurrent"


def test_a_new_limit_counts_what_is_live() -> None:
    """Limits edited while requests run hold for the next one; what runs is let be."""
    desk = Desk()
    desk.quotas.reserve(ask("r1", tokens=(50, 50)))
    desk.shares.replace({"acme": TenantShare(tokens_per_minute=110)})

    assert not desk.refused(ask("r2", tokens=(10, 1))).is_for_good
    desk.quotas.charge("r1", 100)
    desk.quotas.release("r1")
    assert desk.quotas.use("acme").used_tokens == 100
    desk.shares.replace({})
    desk.quotas.reserve(ask("r2", tokens=(10, 1)))


def test_a_checkpoint_keeps_the_last_minutes_use() -> None:
    """It survives the wire, and what was used leaves when it would have."""
    desk, heir = Desk(tokens_per_minute=100), Desk(tokens_per_minute=100)
    desk.serve("r1", 60)
    desk.clock.now_s += 20
    desk.serve("r2", 40)
    encoded = msgspec.msgpack.encode(desk.quotas.checkpoint())
    heir.quotas.restore(msgspec.msgpack.decode(encoded, type=Windows))

    assert heir.quotas.use("acme") == desk.quotas.use("acme")
    assert heir.refused(ask("r3")).retry_after_s == desk.refused(ask("r3")).retry_after_s
    heir.clock.now_s += WINDOW_S + 1 - 20
    assert heir.quotas.use("acme").used_tokens == 40


def test_a_checkpoint_names_a_bounded_number_of_tenants() -> None:
    """Those that have used most."""
    desk = Desk(max_tenants=2, tokens_per_minute=100)
    for tenant, tokens in (("a", 30), ("b", 10), ("c", 20)):
        desk.quotas.reserve(ask(tenant, tenant, tokens=(tokens, 1)))
        desk.quotas.charge(tenant, tokens)

    assert set(desk.quotas.checkpoint()) == {"a", "c"}


def test_invented_tenants_leave_nothing_behind() -> None:
    """A hundred thousand names: none is kept for longer than its minute, and few rejections."""
    desk = Desk(max_tenants=10, tokens_per_minute=100)
    most = 0
    for number in range(100_000):
        tenant = f"t{number}"
        desk.quotas.reserve(ask(tenant, tenant))
        desk.quotas.charge(tenant, 20)
        desk.quotas.release(tenant)
        desk.refused(ask("large", tenant, tokens=(100, 100)))
        desk.clock.now_s += 0.1
        most = max(most, len(desk.quotas))

    assert most <= 2 * 10 * WINDOW_S
    assert len(desk.quotas.rejected) == 10


def test_tenants_without_limits_are_kept_while_they_have_requests() -> None:
    """Nothing of them outlives their last one."""
    desk = Desk()
    desk.quotas.reserve(ask("r1"))
    desk.quotas.charge("r1", 20)
    assert len(desk.quotas) == 1
    desk.quotas.release("r1")

    assert len(desk.quotas) == 0


TENANTS = st.sampled_from(["a", "b"])
LIMITS = st.builds(
    TenantShare,
    tokens_per_minute=st.none() | st.integers(2, 200),
    max_concurrent=st.none() | st.integers(1, 4),
)


class Ledger(RuleBasedStateMachine):
    """Quotas beside every token ever processed and every request that is live."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = HeldClock()
        self.now_s = SteadyClock(self.clock)
        self.limits: Mapping[str, TenantShare] = {}
        self.shares = TenantShares()
        self.quotas = Quotas(self.shares, clock=self.now_s, max_tenants=100)
        self.live: dict[str, TrackedRequest] = {}
        self.processed: list[tuple[str, float, int]] = []  # by tenants with a limit
        self.ceilings: dict[str, float] = {}  # their limit, or what was there when it was set
        self.asked = 0

    def left(self, tenant: str) -> int:
        return sum(
            live.prompt_left + (live.max_output_tokens or 0) - live.output_done
            for live in self.live.values()
            if live.tenant == tenant
        )

    def used(self, tenant: str, window_s: float = WINDOW_S) -> int:
        since_s = self.now_s() - window_s
        return sum(
            tokens
            for owner, then_s, tokens in self.processed
            if owner == tenant and then_s > since_s
        )

    @rule(tenant=TENANTS, share=LIMITS)
    def edit(self, tenant: str, share: TenantShare) -> None:
        self.limits = {**self.limits, tenant: share}
        self.shares.replace(self.limits)
        most = inf if share.tokens_per_minute is None else share.tokens_per_minute
        self.ceilings[tenant] = max(most, self.used(tenant) + self.left(tenant))

    @rule(tenant=TENANTS, prompt=st.integers(1, 60), output=st.integers(1, 60))
    def arrive(self, tenant: str, prompt: int, output: int) -> None:
        self.asked += 1
        request = ask(f"r{self.asked}", tenant, tokens=(prompt, output))
        share, wanted = self.shares[tenant], prompt + output
        num_live = sum(live.tenant == tenant for live in self.live.values())
        has_seat = share.max_concurrent is None or num_live < share.max_concurrent
        most = share.tokens_per_minute
        taken = self.left(tenant) + wanted
        try:
            self.quotas.reserve(request)
        except QuotaExceededError:
            # A second counts for up to a second too long.
            assert not has_seat or (
                most is not None and self.used(tenant, WINDOW_S + 1) + taken > most
            )
        else:
            assert has_seat
            assert most is None or self.used(tenant) + taken <= most
            self.live[request.request_id] = tracked(request)

    @precondition(lambda self: self.live)
    @rule(data=st.data(), tokens=st.integers(1, 40))
    def process(self, data: st.DataObject, tokens: int) -> None:
        live = self.live[data.draw(st.sampled_from(sorted(self.live)))]
        prompt = min(tokens, live.prompt_left)
        output = min(tokens - prompt, (live.max_output_tokens or 0) - live.output_done)
        if prompt + output == 0:
            return
        live.prompt_done += prompt
        live.output_done += output
        self.quotas.charge(live.request_id, prompt + output)
        if self.shares[live.tenant].tokens_per_minute is not None:
            self.processed.append((live.tenant, self.now_s(), prompt + output))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        request_id = data.draw(st.sampled_from(sorted(self.live)))
        del self.live[request_id]
        self.quotas.release(request_id)

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def move(self, data: st.DataObject) -> None:
        live = self.live[data.draw(st.sampled_from(sorted(self.live)))]
        self.quotas.reserve(ask(live.request_id, live.tenant, tokens=(1000, 1000)))

    @rule(seconds=st.sampled_from([0.3, 1.0, 7.7, 59.0, 61.0, 10_000.0, -0.5, -5000.0]))
    def jump(self, seconds: float) -> None:
        self.clock.now_s += seconds

    @rule()
    def restore(self) -> None:
        """A new router, by a checkpoint that goes over the wire."""
        encoded = msgspec.msgpack.encode(self.quotas.checkpoint())
        self.quotas = Quotas(self.shares, clock=self.now_s, max_tenants=100)
        self.quotas.restore(msgspec.msgpack.decode(encoded, type=Windows))
        for live in self.live.values():
            self.quotas.take_in(live)

    @invariant()
    def no_minute_holds_more_than_the_limit(self) -> None:
        """Nor could it, if all that is live took all it may."""
        for tenant, most in self.ceilings.items():
            assert self.used(tenant) + self.left(tenant) <= most

    @invariant()
    def reservations_are_what_live_requests_may_still_take(self) -> None:
        for tenant in ("a", "b"):
            assert self.quotas.use(tenant).reserved_tokens == self.left(tenant)

    @invariant()
    def use_is_never_counted_short(self) -> None:
        for tenant in ("a", "b"):
            used = self.quotas.use(tenant).used_tokens
            assert self.used(tenant) <= used <= self.used(tenant, WINDOW_S + 1)


TestLedger = Ledger.TestCase
