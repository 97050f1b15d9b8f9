"""Where the KV of conversations and prefixes is."""

from scheduler.tracking import TrackedRequest
from scheduler.warmth import Warmth


def request(
    tenant: str = "acme", conversation: str | None = None, engine_id: str | None = "a"
) -> TrackedRequest:
    return TrackedRequest(
        request_id="r1",
        tenant=tenant,
        conversation=conversation,
        engine_id=engine_id,
        arrival_s=0.0,
        prompt_tokens=10,
        max_output_tokens=None,
    )


def test_conversations_of_the_same_name_belong_to_their_tenants() -> None:
    """One tenant's conversation says nothing about another's with the same name."""
    warmth = Warmth(max_conversations=10, max_prefixes=10)
    warmth.remember(request("acme", "c1"))

    assert warmth.engine(request("acme", "c1"), []) == "a"
    assert warmth.engine(request("other", "c1"), []) is None
    assert warmth.engine(request("acme", None), []) is None


def test_the_longest_known_prefix_decides_for_who_has_no_conversation() -> None:
    """Of two engines that have beginnings of a prompt, the one with the longer is warm."""
    warmth = Warmth(max_conversations=10, max_prefixes=10)
    warmth.remember(request(engine_id="a"), [1, 2])
    warmth.remember(request(engine_id="b"), [1, 3, 4])

    assert warmth.engine(request(), [1, 3, 5]) == "b"
    assert warmth.engine(request(), [1, 2, 9]) == "a"
    assert warmth.engine(request(), [7]) is None


def test_what_was_not_heard_of_longest_is_dropped_first() -> None:
    """Memory is bounded, and a conversation that goes on stays in it."""
    warmth = Warmth(max_conversations=2, max_prefixes=2)
    for name in ("c1", "c2", "c1", "c3"):
        warmth.remember(request(conversation=name))
    for prefix in (1, 2, 1, 3):
        warmth.remember(request(), [prefix])

    assert warmth.engine(request(conversation="c2"), []) is None
    assert warmth.engine(request(conversation="c1"), []) == "a"
    assert warmth.engine(request(), [2]) is None
    assert warmth.engine(request(), [1]) == "a"
