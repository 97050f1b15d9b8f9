"""Which engine is told to keep whose KV, as turns begin, call tools and are followed by others."""

from scheduler.tool_turns import ToolTurns
from scheduler.tool_waits import ALMOST_ALL_WAITS, FEW_WAITS, TYPICAL_WAIT_S, DeviceMemory

PLENTY = DeviceMemory(refill_s=1.0, demand=0.0)
MOST_S = 30.0
UNKNOWN_S = ALMOST_ALL_WAITS * TYPICAL_WAIT_S  # for a tool of which nothing is known


class Conversations:
    """Turns of one tenant, with a clock that the test moves."""

    def __init__(self, *, max_ttl_s: float = MOST_S) -> None:
        self.turns = ToolTurns(max_ttl_s=max_ttl_s)
        self.now_s = 100.0
        for engine_id in ("e1", "e2"):
            self.pins(engine_id)

    def begin(
        self, conversation: str | None, turn: str, engine_id: str = "e1", tenant: str = "a"
    ) -> None:
        self.turns.come_back(tenant, conversation, self.now_s)
        self.turns.begin(tenant, conversation, turn, engine_id)

    def call(self, conversation: str, *tools: str, tenant: str = "a") -> None:
        self.turns.call(tenant, conversation, tools, PLENTY, self.now_s)

    def pins(self, engine_id: str = "e1") -> dict[str, float] | None:
        return self.turns.take_pins(engine_id)

    def learn(self, wait_s: float, *tools: str, tenant: str = "a") -> None:
        """So many turns that each waited so long."""
        for index in range(FEW_WAITS + 1):
            self.begin("learning", f"learning {index}", tenant=tenant)
            self.call("learning", *tools, tenant=tenant)
            self.now_s += wait_s
        self.begin("learning", "learned", tenant=tenant)
        self.pins()


def test_a_turn_that_called_a_tool_is_pinned_where_it_ran() -> None:
    """Its engine is told, once, and no other."""
    conversations = Conversations()
    conversations.begin("c", "turn 1", "e2")

    conversations.call("c", "search")

    assert conversations.pins("e1") == {}
    assert conversations.pins("e2") == {"turn 1": UNKNOWN_S}
    assert conversations.pins("e2") == {}


def test_a_wait_ends_with_the_conversations_next_request() -> None:
    """How long a tool took is learned from when the conversation came back."""
    conversations = Conversations()
    conversations.learn(2.5, "search")

    conversations.begin("c", "turn 1")
    conversations.call("c", "search")

    assert conversations.pins() == {"turn 1": 2.5}


def test_tools_called_together_are_one() -> None:
    """In any order and however often, and apart from each of them alone."""
    conversations = Conversations()
    conversations.learn(0.5, "search")
    conversations.learn(4.0, "read", "search")

    conversations.begin("c", "turn 1")
    conversations.call("c", "search", "read", "search")

    assert conversations.pins() == {"turn 1": 4.0}


def test_one_tenants_tools_say_nothing_of_anothers() -> None:
    """Two tenants' tools of the same name are learned apart, and their conversations too."""
    conversations = Conversations()
    conversations.learn(0.5, "search", tenant="a")
    conversations.learn(4.0, "search", tenant="b")

    conversations.begin("c", "of b", tenant="b")
    conversations.begin("c", "of a", tenant="a")
    conversations.call("c", "search", tenant="a")

    assert conversations.pins() == {"of a": 0.5}


def test_a_turn_that_goes_on_elsewhere_ends_its_pin() -> None:
    """What is pinned on the engine that served it before is of no use any more."""
    conversations = Conversations()
    conversations.begin("c", "turn 1", "e1")
    conversations.call("c", "search")
    assert conversations.pins("e1") == {"turn 1": UNKNOWN_S}

    conversations.begin("c", "turn 2", "e2")

    assert conversations.pins("e1") == {"turn 1": 0.0}


def test_a_pin_outlasts_the_wait_for_a_place() -> None:
    """Once the next request has come, the engine is told to keep the pin; in time, if it can be."""
    conversations = Conversations()
    conversations.begin("c", "turn 1")
    conversations.call("c", "search")
    assert conversations.pins() == {"turn 1": UNKNOWN_S}

    conversations.turns.come_back("a", "c", conversations.now_s)

    assert conversations.pins() == {"turn 1": MOST_S}
    conversations.turns.come_back("a", "c", conversations.now_s)
    assert conversations.pins() == {}


def test_those_that_never_come_back_are_learned_from() -> None:
    """A tool that ends conversations is pinned for no more once some have not come back in time."""
    conversations = Conversations()
    num_open = 4  # whose pin may still be of use, at any time
    pinned = []
    for index in range(3 * FEW_WAITS):
        conversations.begin(f"c{index}", f"turn {index}")
        conversations.call(f"c{index}", "submit_answer")
        pinned.append(bool(conversations.pins()))
        conversations.now_s += MOST_S / num_open

    assert pinned.index(False) == FEW_WAITS + num_open
    assert not any(pinned[FEW_WAITS + num_open :])


def test_whoever_comes_back_after_the_longest_pin_never_came() -> None:
    """It is counted once, as what no pin would have been of use for."""
    conversations = Conversations()
    for index in range(FEW_WAITS):
        conversations.begin("c", f"turn {index}")
        conversations.call("c", "nightly_build")
        conversations.now_s += MOST_S + 1.0
        conversations.begin("other", f"another turn {index}")
    conversations.pins()

    conversations.begin("c", "turn")
    conversations.call("c", "nightly_build")

    assert conversations.pins() == {}


def test_a_call_waits_from_its_last_mention() -> None:
    """A turn that is said to have called twice has not waited for longer than since then."""
    conversations = Conversations()
    conversations.begin("c", "turn 1")
    conversations.call("c", "search")
    conversations.now_s += MOST_S - 1.0
    conversations.call("c", "search")
    conversations.now_s += MOST_S - 1.0

    conversations.turns.come_back("a", "c", conversations.now_s)

    assert conversations.pins() == {"turn 1": MOST_S}


def test_turns_beyond_the_most_are_forgotten() -> None:
    """The oldest first; nothing is learned from them, as nobody knows what their tools take."""
    turns = ToolTurns(max_ttl_s=MOST_S, max_turns=2)
    for index in range(3):
        turns.begin("a", f"c{index}", f"turn {index}", "e1")
        turns.call("a", f"c{index}", ["search"], PLENTY, 0.0)

    assert [turns.engine("a", f"c{index}") for index in range(3)] == [None, "e1", "e1"]


def test_what_is_not_known_is_ignored() -> None:
    """Requests without a conversation, calls in conversations unheard of, engines that left."""
    conversations = Conversations()
    conversations.begin(None, "alone")
    conversations.call("nobody's", "search")
    conversations.begin("c", "turn 1", "e2")
    conversations.turns.forget_engine("e2")
    conversations.call("c", "search")

    assert (conversations.pins("e1"), conversations.pins("e2")) == ({}, {})


def test_with_a_bound_of_nought_nothing_is_ever_pinned() -> None:
    """Then engines are told so, and hold nothing until they know."""
    conversations = Conversations(max_ttl_s=0.0)
    conversations.begin("c", "turn 1")
    conversations.call("c", "search")

    assert conversations.pins() is None
