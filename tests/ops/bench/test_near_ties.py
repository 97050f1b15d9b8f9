"""Outputs that differ are put before the model: a tie, or wrong KV?"""

from pathlib import Path
from random import Random

import pytest

from app.demo_model import write_demo_model
from app.demo_tokenizer import TOKEN_IDS
from ops.bench.conversations import Conversation, Turn
from ops.bench.near_ties import (
    NEAR_NATS,
    Difference,
    Distance,
    Question,
    describe,
    differences,
    measure,
)
from ops.bench.settings import read_settings
from ops.bench.workload import random_ids

NUM_LIKELIEST = 20


def turn(*new_ids: int) -> Turn:
    return Turn(list(new_ids), 2, 0, 0.0, 0.0)


TALK = Conversation("talk", 0.0, [turn(1, 2), turn(3), turn(4)])
OTHER = Conversation("other", 0.0, [turn(5)])
EXPECTED = [[7, 8], [9, 10], [11, 12], [13, 14]]


def found(outputs: list[list[int]]) -> list[Difference]:
    return list(differences("fastswitch", 0, [TALK, OTHER], outputs, EXPECTED))


def test_equal_outputs_raise_no_question() -> None:
    """Then no engine is started to answer any."""
    assert found(EXPECTED) == []
    assert measure([], read_settings(model=None)) == []


def test_the_question_is_the_text_up_to_the_first_token_that_differs() -> None:
    """The conversation so far, with the answers that were given, and the two tokens."""
    [one] = found([[7, 8], [9, 99], [11, 12], [13, 14]])
    assert (one.conversation, one.turn, one.position) == ("talk", 1, 1)
    assert one.question == Question([1, 2, 7, 8, 3, 9], (99, 10))


def test_what_comes_behind_a_difference_is_not_asked_about() -> None:
    """It has another history; other conversations have their own."""
    both = found([[7, 8], [99, 10], [50, 51], [13, 98]])
    assert [(one.conversation, one.turn, one.position) for one in both] == [
        ("talk", 1, 0),
        ("other", 0, 1),
    ]


def test_an_output_that_ends_early_is_no_tie() -> None:
    """There is no second token that could be as likely."""
    [one] = found([[7], *EXPECTED[1:]])
    assert one.question.tokens == (-1, 8)


def test_only_a_small_distance_is_a_tie() -> None:
    """One that cannot be told is a large one."""
    [one] = found([[7, 99], *EXPECTED[1:]])
    near, far, untold = Distance(NEAR_NATS), Distance(2 * NEAR_NATS), Distance(None)
    verdicts = [describe([one], [each])[0]["is_near_tie"] for each in (near, far, untold)]
    assert verdicts == [True, False, False]


@pytest.mark.engine
@pytest.mark.timeout(300)
def test_the_model_says_how_far_two_tokens_are_apart(tmp_path: Path, seed: int) -> None:
    """Nothing from itself, the same both ways; untold where one is not among the likeliest."""
    write_demo_model(tmp_path / "tiny", "tiny")
    text = random_ids(Random(seed), 20)
    settings = read_settings(model=str(tmp_path / "tiny"), max_model_len=128, kv_cache_gib=0.1)

    def ask(*pairs: tuple[int, int]) -> list[float | None]:
        asked = [Difference("", 0, "", 0, 20, Question(text, pair)) for pair in pairs]
        return [distance.nats for distance in measure(asked, settings)]

    all_tokens = range(len(TOKEN_IDS))
    from_itself = ask(*((token, token) for token in all_tokens))
    likeliest = [token for token in all_tokens if from_itself[token] == 0.0]
    unlikely = from_itself.index(None)
    assert len(likeliest) == NUM_LIKELIEST
    one, other, *_ = likeliest
    there, back, untold = ask((one, other), (other, one), (one, unlikely))
    assert there is not None
    assert there > 0
    assert there == back
    assert untold is None
