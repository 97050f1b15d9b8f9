"""How answers go on with another engine: which way, and what has been put out already."""

from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deployments.continuation import WAYS, Transcript, Way, way
from deployments.errors import ReplayDivergedError

OPERATING = Path(__file__).parents[2] / "docs" / "operating.md"

token_ids = st.integers(0, 2**32 - 1)
answers = st.lists(token_ids, min_size=1, max_size=40)


@st.composite
def lost_engines(draw: st.DrawFn, num_tokens: int) -> list[int]:
    """How far each engine gets before it is lost; the last one gets to the end."""
    return [*draw(st.lists(st.integers(0, num_tokens), max_size=4)), num_tokens]


def pieces(draw: Callable[..., list[int]], tokens: Sequence[int]) -> list[list[int]]:
    """Tokens as an engine puts them out: some at a time."""
    sizes = draw(st.lists(st.integers(1, 5), min_size=len(tokens), max_size=len(tokens)))
    ends = [0, *(end for end in accumulate(sizes) if end < len(tokens)), len(tokens)]
    return [list(tokens[begin:end]) for begin, end in pairwise(ends)]


def take_all(transcript: Transcript, pieces: Sequence[Sequence[int]]) -> None:
    for piece in pieces:
        transcript.take(piece, is_end=False)


def test_the_strictest_way_counts() -> None:
    """Of all that a request asks for; one that asks for nothing special continues."""
    assert way([]) is Way.CONTINUE
    assert way(["temperature", "max_tokens"]) is Way.CONTINUE
    assert way(["temperature", "seed"]) is Way.REPLAY
    assert way(["seed", "resumable", "temperature"]) is Way.END


def test_what_is_not_known_to_be_safe_ends() -> None:
    """A parameter of a release to come is not taken for one that does no harm."""
    assert way(["temperature", "a_parameter_to_come"]) is Way.END


def test_all_that_does_not_simply_continue_is_documented() -> None:
    """An operator finds each by its name, in the row of its way."""
    rows = {
        Way.REPLAY: "| runs again |",
        Way.END: "| ends with an error |",
    }
    lines = OPERATING.read_text().splitlines()
    for wanted, row in rows.items():
        [line] = [line for line in lines if line.startswith(row)]
        named = {name for name in WAYS if f"`{name}`" in line}
        assert named == {name for name, each in WAYS.items() if each is wanted}


@given(st.data())
def test_a_replayed_answer_comes_out_once(data: st.DataObject) -> None:
    """However often its engine is lost and wherever: each token is new once, in its place."""
    answer = data.draw(answers)
    transcript, told = Transcript(), []
    for reached in data.draw(lost_engines(len(answer))):
        transcript.rewind()
        for piece in pieces(data.draw, answer[:reached]):
            told += piece[transcript.take(piece, is_end=False) :]

    assert told == transcript.tokens == answer
    assert len(transcript) == len(answer)


@given(st.data())
def test_an_answer_that_continues_comes_out_once(data: st.DataObject) -> None:
    """Without a rewind every token is new."""
    answer = data.draw(answers)
    transcript = Transcript()
    for piece in pieces(data.draw, answer):
        assert transcript.take(piece, is_end=False) == 0

    assert transcript.tokens == answer


@given(st.data())
def test_a_repetition_that_differs_is_refused_where_it_differs(data: st.DataObject) -> None:
    """Whatever the pieces, and nothing of the piece is taken."""
    answer = data.draw(answers)
    wrong = data.draw(st.integers(0, len(answer) - 1))
    other = [*answer[:wrong], answer[wrong] ^ 1, *answer[wrong + 1 :]]
    transcript = Transcript()
    transcript.take(answer, is_end=False)
    transcript.rewind()

    with pytest.raises(ReplayDivergedError) as caught:
        take_all(transcript, pieces(data.draw, other))
    assert (caught.value.position, caught.value.num_tokens) == (wrong, len(answer))
    assert transcript.tokens == answer


def test_a_repetition_that_ends_early_is_refused() -> None:
    """The client has had more than that."""
    transcript = Transcript()
    transcript.take([1, 2, 3], is_end=False)
    transcript.rewind()
    with pytest.raises(ReplayDivergedError, match="token 2 of the 3 to be repeated"):
        transcript.take([1, 2], is_end=True)


def test_a_repetition_may_end_the_answer() -> None:
    """With its last tokens, known or new."""
    for end in ([1, 2], [1, 2, 3]):
        transcript = Transcript()
        transcript.take([1, 2], is_end=False)
        transcript.rewind()
        assert transcript.take(end, is_end=True) == 2
        assert transcript.tokens == end
