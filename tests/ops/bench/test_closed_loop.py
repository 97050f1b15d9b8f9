"""A conversation's next turn waits for the answer to the one before."""

from ops.bench.closed_loop import ClosedLoop, DueTurn
from ops.bench.conversations import Conversation, Turn


def conversation(arrival_s: float, *turns: Turn) -> Conversation:
    return Conversation("c", arrival_s, list(turns))


def turn(*new_ids: int, num_dropped: int = 0, think_s: float = 0.0, gap_s: float = 0.0) -> Turn:
    return Turn(list(new_ids), 2, num_dropped, think_s, gap_s)


def test_turns_are_due_when_they_arrive_and_not_before() -> None:
    """Earliest first, each once."""
    loop = ClosedLoop([conversation(2.0, turn(1)), conversation(1.0, turn(2))])
    assert (list(loop.take_due(0.9)), loop.next_due_s) == ([], 1.0)
    assert list(loop.take_due(5.0)) == [DueTurn(1, 1.0, [2], 2), DueTurn(0, 2.0, [1], 2)]
    assert (list(loop.take_due(9.0)), loop.next_due_s) == ([], None)


def test_a_prompt_is_the_conversation_so_far_with_what_was_generated() -> None:
    """Less what its client drops."""
    loop = ClosedLoop([conversation(0.0, turn(1, 2), turn(3), turn(4, num_dropped=2))])
    prompts = []
    for output in ([7, 8], [9], [5]):
        [due] = loop.take_due(0.0)
        prompts.append(due.prompt)
        loop.end_turn(0, output, 0.0)
    assert prompts == [[1, 2], [1, 2, 7, 8, 3], [1, 2, 7, 8, 4]]


def test_the_next_turn_waits_for_its_client_to_think() -> None:
    """From the end of the turn before."""
    loop = ClosedLoop([conversation(1.0, turn(1), turn(2, think_s=0.5))])
    list(loop.take_due(1.0))
    assert loop.next_due_s is None
    loop.end_turn(0, [7], 4.0)
    assert loop.next_due_s == 4.5


def test_where_only_the_gap_between_arrivals_is_known_a_late_answer_delays_nothing_more() -> None:
    """The next turn comes a gap after the last one came, but never before its answer."""
    for ended_s, due_s in ((1.5, 3.0), (8.0, 8.0)):
        loop = ClosedLoop([conversation(1.0, turn(1), turn(2, gap_s=2.0))])
        list(loop.take_due(1.2))
        loop.end_turn(0, [7], ended_s)
        assert loop.next_due_s == due_s


def test_a_replay_is_over_when_every_turn_has_ended() -> None:
    """Not while one is out, nor while one is still to come."""
    loop = ClosedLoop([conversation(0.0, turn(1))])
    assert not loop.is_over
    list(loop.take_due(0.0))
    assert not loop.is_over
    loop.end_turn(0, [7], 1.0)
    assert loop.is_over
