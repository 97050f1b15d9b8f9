"""Where two modes' tokens differ: was it a tie of the model's, or did one read the wrong KV?

Sums in float32 depend in their last digits on what else is in the batch, and the modes batch
differently. Where the model gives two tokens as good as the same probability, either may come out;
from wrong KV any token does. So the model is asked, in an engine that runs nothing else, how far
apart the two tokens are where two outputs first differ. What follows in a conversation has another
history, so nothing can be said of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from math import inf
from typing import Any

import msgspec

from app.settings import AppArgs
from ops.bench.closed_loop import ClosedLoop
from ops.bench.conversations import Conversation
from ops.bench.engine_process import given_args, running_engine
from ops.bench.progress import Progress
from ops.bench.replay import ReplayResult

MODULE = "ops.bench.scoring_engine"
# The same distance differs between batches of other shapes by up to 8e-5 (480 tokens of the demo
# model, behind 300 to 1,400 others). Most tokens' distance to the second is above 1e-2.
NEAR_NATS = 2e-4


class Question(msgspec.Struct, frozen=True):
    """How far apart are these two tokens behind this text?"""

    text: list[int]
    tokens: tuple[int, int]


class Distance(msgspec.Struct, frozen=True):
    """Between two tokens' log-probabilities; None where not both are among the likeliest."""

    nats: float | None

    @property
    def is_near_tie(self) -> bool:
        return self.nats is not None and self.nats <= NEAR_NATS


class Difference(msgspec.Struct, frozen=True):
    """The first token of a conversation in which two modes differ."""

    mode: str
    repeat: int
    conversation: str
    turn: int
    position: int
    question: Question


def explain(
    results: Mapping[str, Sequence[ReplayResult]],
    conversations: Sequence[Sequence[Conversation]],
    settings: AppArgs,
    progress: Progress,
) -> dict[str, Any]:
    """The result's keys about outputs that are not those of the first mode.

    ``results`` are every mode's repeats, ``conversations`` what each repeat played.
    """
    (_, expected), *others = results.items()
    found = [
        difference
        for mode, replays in others
        for repeat, (ours, theirs) in enumerate(zip(replays, expected, strict=True))
        for difference in differences(
            mode, repeat, conversations[repeat], ours.outputs, theirs.outputs
        )
    ]
    if found:
        progress.tell(f"{len(found)} conversations differ: asking the model by how little")
    distances = measure(found, settings)
    return {
        "differences": describe(found, distances),
        "outputs_right": all(one.is_near_tie for one in distances),
    }


def differences(
    mode: str,
    repeat: int,
    conversations: Sequence[Conversation],
    outputs: Sequence[Sequence[int]],
    expected: Sequence[Sequence[int]],
) -> Iterator[Difference]:
    """Where a mode's outputs are not the expected ones; both by conversation, then turn."""
    begin = 0
    for one in conversations:
        end = begin + len(one.turns)
        pairs = list(zip(outputs[begin:end], expected[begin:end], strict=True))
        begin = end
        turn = next((turn for turn, (a, b) in enumerate(pairs) if a != b), None)
        if turn is None:
            continue
        ours, theirs = pairs[turn]
        position = next(at for at, (a, b) in enumerate(zip_longest(ours, theirs)) if a != b)
        before = [list(output) for output, _ in pairs[:turn]]
        question = Question(
            [*_prompt(one, before), *ours[:position]],
            (_at(ours, position), _at(theirs, position)),
        )
        yield Difference(mode, repeat, one.name, turn, position, question)


def measure(found: Sequence[Difference], settings: AppArgs) -> list[Distance]:
    """Ask an engine that has no connector and nothing else to run; none is started for nothing.

    Raises:
        EngineFailedError: it ended instead.
    """
    if not found:
        return []
    arguments = {**given_args(settings), "kv_transfer_config": None}
    with running_engine("scoring", settings, arguments, MODULE, Distance) as engine:
        return [engine.ask(one.question) for one in found]


def describe(found: Sequence[Difference], distances: Sequence[Distance]) -> list[Mapping[str, Any]]:
    """For the result: a row for each difference."""
    return [
        {
            "mode": one.mode,
            "repeat": one.repeat,
            "conversation": one.conversation,
            "turn": one.turn,
            "position": one.position,
            "tokens": list(one.question.tokens),
            "nats_apart": distance.nats,
            "is_near_tie": distance.is_near_tie,
        }
        for one, distance in zip(found, distances, strict=True)
    ]


def _prompt(conversation: Conversation, outputs: Sequence[Sequence[int]]) -> list[int]:
    """What the turn behind these outputs was sent with."""
    loop = ClosedLoop([conversation])
    for output in outputs:
        list(loop.take_due(inf))
        loop.end_turn(0, output, 0.0)
    (due,) = loop.take_due(inf)
    return due.prompt


def _at(output: Sequence[int], position: int) -> int:
    """-1 behind the end: no token, so none that could tie."""
    return output[position] if position < len(output) else -1
