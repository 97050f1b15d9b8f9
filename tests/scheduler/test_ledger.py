"""Counting service from cumulative reports."""

from hypothesis import given
from hypothesis import strategies as st

from scheduler.ledger import ServiceLedger, Tokens


def make_ledger(max_tenants: int = 100, max_departed: int = 100) -> ServiceLedger:
    """A ledger that counts engine ``e``, whose totals were nought at first."""
    ledger = ServiceLedger(max_tenants=max_tenants, max_departed=max_departed)
    ledger.open("e")
    ledger.settle("e", {})
    return ledger


def test_totals_settle_only_what_single_requests_did_not_account_for() -> None:
    """What was counted request by request is not counted again from the engine's totals."""
    ledger = make_ledger()
    ledger.add("e", "acme", Tokens(10, 3))

    assert ledger.settle("e", {"acme": (10, 5), "new": (7, 0)}) == {
        "acme": Tokens(0, 2),
        "new": Tokens(7, 0),
    }
    assert ledger.tenants == {"acme": Tokens(10, 5), "new": Tokens(7, 0)}
    assert ledger.settle("e", {"acme": (10, 5), "new": (7, 0)}) == {}


def test_totals_take_back_what_was_counted_too_much() -> None:
    """The engine's own totals are the last word, also downwards."""
    ledger = make_ledger()
    ledger.add("e", "acme", Tokens(10, 3))

    assert ledger.settle("e", {"acme": (10, 1)}) == {"acme": Tokens(0, -2)}
    assert ledger.total == Tokens(10, 1)


def test_the_first_totals_of_an_unknown_engine_are_history() -> None:
    """They are counted, so that service received is right, but nobody is charged for them."""
    ledger = ServiceLedger(max_tenants=100)
    ledger.open("e")

    assert ledger.settle("e", {"acme": (1000, 500)}) == {}
    assert ledger.total == Tokens(1000, 500)
    assert ledger.settle("e", {"acme": (1000, 501)}) == {"acme": Tokens(0, 1)}


def test_an_engine_that_comes_back_is_counted_on() -> None:
    """What an engine did while it was given up is charged when it is back, and nothing twice."""
    ledger = make_ledger()
    ledger.add("e", "acme", Tokens(10, 3))
    ledger.close("e")
    ledger.open("e")

    assert ledger.settle("e", {"acme": (10, 8)}) == {"acme": Tokens(0, 5)}


def test_a_restarted_engine_counts_from_nought() -> None:
    """All that an engine has done since its restart is news, and the rest stays counted."""
    ledger = make_ledger()
    ledger.add("e", "acme", Tokens(10, 3))
    ledger.restart("e")

    assert ledger.settle("e", {"acme": (4, 1)}) == {"acme": Tokens(4, 1)}
    assert ledger.total == Tokens(14, 4)


def test_service_of_tenants_no_longer_listed_stays_in_the_total() -> None:
    """However many tenant names there are, the list is bounded and the total is right."""
    ledger = make_ledger(max_tenants=2)
    for name in ("a", "b", "a", "c"):
        ledger.add("e", name, Tokens(1, 1))

    assert set(ledger.tenants) == {"a", "c"}
    assert ledger.total == Tokens(4, 4)


def test_accounts_of_engines_long_gone_are_dropped() -> None:
    """Engines that come and go under ever new names do not fill the memory."""
    ledger = ServiceLedger(max_tenants=10, max_departed=2)
    for engine_id in ("e1", "e2", "e3"):
        ledger.open(engine_id)
        ledger.close(engine_id)

    assert set(ledger.checkpoint().engines) == {"e2", "e3"}


@given(
    moves=st.lists(
        st.tuples(
            st.sampled_from("ab"),  # engine
            st.sampled_from("xyz"),  # tenant
            st.integers(0, 100),
            st.integers(0, 100),
            st.booleans(),  # whether the ledger learns of this move by itself
            st.booleans(),  # whether the engine's totals follow
        )
    )
)
def test_the_sum_of_all_that_engines_did_is_the_sum_of_all_tenants(
    moves: list[tuple[str, str, int, int, bool, bool]],
) -> None:
    """However moves get lost, after each engine's totals the two sums are equal."""
    ledger = ServiceLedger(max_tenants=2)
    done: dict[str, dict[str, tuple[int, int]]] = {"a": {}, "b": {}}
    for engine_id in done:
        ledger.open(engine_id)
    for engine_id, tenant, prompt, output, is_told, is_settled in moves:
        before = done[engine_id].get(tenant, (0, 0))
        done[engine_id][tenant] = (before[0] + prompt, before[1] + output)
        if is_told:
            ledger.add(engine_id, tenant, Tokens(prompt, output))
        if is_settled:
            ledger.settle(engine_id, done[engine_id])

    for engine_id, totals in done.items():
        ledger.settle(engine_id, totals)

    processed = [tokens for totals in done.values() for tokens in totals.values()]
    assert ledger.total == Tokens(sum(p for p, _ in processed), sum(o for _, o in processed))
