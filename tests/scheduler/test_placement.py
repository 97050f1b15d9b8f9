"""Which engine a request goes to."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from scheduler.placement import (
    AFFINITY_BOUND,
    ConversationMemory,
    OutputLengths,
    choose_engine,
)

LOADS = st.dictionaries(st.sampled_from("abcdefgh"), st.floats(0, 1e6), min_size=1)


def test_a_new_request_goes_to_the_least_loaded_engine() -> None:
    """With nothing cached, load alone decides."""
    loads = {"a": 30.0, "b": 10.0, "c": 20.0}

    assert choose_engine(loads, warm=None, request_load=5.0, random=Random(0)) == "b"


def test_equal_engines_are_drawn_from_with_the_given_randomness() -> None:
    """Ties are broken by the randomness passed in: again with the same seed, spread over many."""
    loads = dict.fromkeys("abcd", 0.0)

    def draws(seed: int) -> list[str]:
        random = Random(seed)
        return [
            choose_engine(loads, warm=None, request_load=1.0, random=random) for _ in range(100)
        ]

    assert draws(1) == draws(1)
    assert set(draws(1)) == set("abcd")


def test_a_conversation_returns_to_its_engine_while_that_is_about_as_busy_as_others() -> None:
    """A warm engine a little above the mean is still chosen over an idle one."""
    loads = {"warm": 12.0, "cold": 8.0}

    assert choose_engine(loads, warm="warm", request_load=0.0, random=Random(0)) == "warm"


def test_a_hot_engine_loses_its_conversations() -> None:
    """A hot conversation or prefix cannot pin an engine: beyond the bound, load decides."""
    loads = {"warm": 20.0, "cold": 8.0}

    assert choose_engine(loads, warm="warm", request_load=1.0, random=Random(0)) == "cold"


def test_affinity_holds_on_an_idle_fleet() -> None:
    """The one request that makes a warm engine busier than idle ones does not drive it away."""
    loads = {"warm": 5.0, "b": 0.0, "c": 0.0, "d": 0.0}

    assert choose_engine(loads, warm="warm", request_load=5.0, random=Random(0)) == "warm"


def test_an_engine_that_has_gone_is_not_warm() -> None:
    """A conversation whose engine has left is placed by load."""
    assert choose_engine({"b": 1.0}, warm="gone", request_load=1.0, random=Random(0)) == "b"


@given(loads=LOADS, warm=st.sampled_from("abcdefgh"), request_load=st.floats(0, 1e4))
def test_no_engine_is_overloaded_for_affinity(
    loads: dict[str, float], warm: str, request_load: float
) -> None:
    """The choice is the least loaded engine, or the warm one within its bound."""
    chosen = choose_engine(loads, warm=warm, request_load=request_load, random=Random(0))

    mean = sum(loads.values()) / len(loads)
    is_least = loads[chosen] == min(loads.values())
    assert is_least or (chosen == warm and loads[warm] <= AFFINITY_BOUND * mean + request_load)


def test_expected_output_follows_the_finished_requests() -> None:
    """What is expected of a request moves to what requests put out lately, within its limit."""
    lengths = OutputLengths(initial=256.0, window=8)
    for _ in range(200):
        lengths.observe(40)

    assert round(lengths.expected_left(done=0, limit=None)) == 40
    assert round(lengths.expected_left(done=100, limit=1000)) == 40
    assert lengths.expected_left(done=90, limit=100) == 10
    assert lengths.expected_left(done=101, limit=100) == 0


def test_conversations_of_the_same_name_belong_to_their_tenants() -> None:
    """One tenant's conversation says nothing about another's with the same name."""
    memory = ConversationMemory(max_conversations=10)
    memory.remember("acme", "c1", "a")

    assert memory.engine("acme", "c1") == "a"
    assert memory.engine("other", "c1") is None
    assert memory.engine("acme", None) is None


def test_the_conversation_not_heard_of_longest_is_dropped_first() -> None:
    """Memory is bounded, and a conversation that goes on stays in it."""
    memory = ConversationMemory(max_conversations=2)
    for conversation in ("c1", "c2", "c1", "c3", None):
        memory.remember("acme", conversation, "a")

    assert len(memory) == 2
    assert memory.engine("acme", "c2") is None
    assert memory.engine("acme", "c1") == "a"
