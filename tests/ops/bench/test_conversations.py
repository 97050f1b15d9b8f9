"""Conversations keep a trace's proportions, and follow from the rows and the seed alone."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from ops.bench.conversations import (
    Scale,
    by_conversation,
    scale_to,
    scaled,
    synthetic_rows,
)
from ops.bench.workload import TraceRow

AS_IT_IS = Scale(tokens=1.0, seconds=1.0, longest_pause_s=60.0)


def test_a_seed_gives_the_same_rows_again_and_another_seed_others() -> None:
    """All modes of a benchmark play the same; each repeat plays something else."""
    assert synthetic_rows("1", 3) == synthetic_rows("1", 3)
    assert synthetic_rows("1", 3) != synthetic_rows("2", 3)


def test_synthetic_conversations_have_several_turns_that_build_on_each_other() -> None:
    """A turn's history is all that was said before it."""
    for turns in by_conversation(synthetic_rows("0", 20), 20, max_turns=9):
        assert len(turns) > 1
        for before, after in pairwise(turns):
            assert after.history_tokens == before.prompt_tokens + before.output_tokens


def test_only_conversations_of_several_turns_are_chosen_in_order_and_cut() -> None:
    """The first so many that can show what a kept copy is worth."""
    rows = [TraceRow(name, 0, 5, 1) for name in "abcbcdcd"]
    chosen = by_conversation(rows, num_conversations=2, max_turns=2)
    assert [[row.conversation for row in turns] for turns in chosen] == [["b"] * 2, ["c"] * 2]


def test_the_longest_turn_is_scaled_to_the_context_and_arrivals_to_their_span() -> None:
    """One constant for all counts and one for all times."""
    rows = [
        TraceRow("a", 0, 1000, 200, arrival_s=10.0),
        TraceRow("b", 0, 300, 100, arrival_s=50.0),
        TraceRow("a", 1200, 600, 200, arrival_s=90.0, gap_s=80.0),
        TraceRow("b", 400, 100, 100, arrival_s=95.0, think_s=7.0, gap_s=45.0),
    ]
    groups = by_conversation(rows, 2, 2)

    scale = scale_to(groups, context_tokens=200, arrivals_s=4.0, longest_pause_s=3.0)
    first, second = scaled(groups, scale, "0")

    assert (scale.tokens, scale.seconds) == (0.1, 0.1)
    assert (first.longest, second.longest) == (200, 60)
    assert (first.arrival_s, second.arrival_s) == (0.0, 4.0)
    assert [(turn.think_s, turn.gap_s) for turn in first.turns] == [(0.0, 0.0), (0.0, 3.0)]
    assert [(turn.think_s, turn.gap_s) for turn in second.turns] == [(0.0, 0.0), (0.7, 0.0)]


def test_short_turns_are_not_made_longer() -> None:
    """A context beyond what the trace needs changes nothing; nor does one arrival for all."""
    groups = by_conversation([TraceRow("a", 0, 5, 5), TraceRow("a", 10, 5, 5)], 1, 2)
    scale = scale_to(groups, context_tokens=1000, arrivals_s=4.0, longest_pause_s=3.0)
    assert (scale.tokens, scale.seconds) == (1.0, 0.0)


def test_what_the_traces_client_cut_from_its_context_is_dropped() -> None:
    """A prompt reuses as much of the conversation as the trace's did."""
    rows = [TraceRow("a", 0, 100, 50), TraceRow("a", 120, 10, 10), TraceRow("a", 140, 10, 10)]
    [conversation] = scaled([rows], AS_IT_IS, "0")
    assert [turn.num_dropped for turn in conversation.turns] == [0, 30, 0]
    assert conversation.longest == 160


@given(st.integers(0, 2**32), st.integers(16, 4096))
def test_a_scaled_context_is_hardly_above_its_aim(seed: int, context_tokens: int) -> None:
    """Only tokens that no turn can do without come on top: one in, one out."""
    groups = by_conversation(synthetic_rows(str(seed), 3), 3, max_turns=6)
    scale = scale_to(groups, context_tokens=context_tokens, arrivals_s=1.0, longest_pause_s=1.0)
    for conversation in scaled(groups, scale, "0"):
        assert conversation.longest <= context_tokens + 2 * len(conversation.turns)
