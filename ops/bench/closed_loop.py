"""The clients' side of a replay: whose turn it is when, with which prompt.

Owns the conversations' texts as they grow and their clocks: a turn is due some time after the one
before it has ended. Time is passed in, in seconds since the replay began.
"""

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ops.bench.conversations import Conversation, Turn


@dataclass(frozen=True, slots=True)
class DueTurn:
    """A turn to send now; ``conversation`` is its index."""

    conversation: int
    due_s: float
    prompt: list[int]
    output_tokens: int


@dataclass(slots=True)
class _Talk:
    """One conversation under way."""

    turns: Iterator[Turn]
    text: list[int] = field(default_factory=list)
    arrived_s: float = 0.0


class ClosedLoop:
    """Each conversation has at most one turn out: due, or sent and not ended."""

    def __init__(self, conversations: Sequence[Conversation]) -> None:
        self._talks = [_Talk(iter(one.turns)) for one in conversations]
        self._due: list[tuple[float, int, Turn]] = []
        self._num_sent = 0
        for index, one in enumerate(conversations):
            self._wait(index, one.arrival_s)

    @property
    def next_due_s(self) -> float | None:
        """When the next turn is due, as far as that is known already."""
        return self._due[0][0] if self._due else None

    @property
    def is_over(self) -> bool:
        return not self._due and not self._num_sent

    def take_due(self, now_s: float) -> Iterator[DueTurn]:
        """Every turn that is due and has not been taken."""
        while self._due and self._due[0][0] <= now_s:
            due_s, index, turn = heapq.heappop(self._due)
            talk = self._talks[index]
            del talk.text[len(talk.text) - turn.num_dropped :]
            talk.text += turn.new_ids
            talk.arrived_s = due_s
            self._num_sent += 1
            yield DueTurn(index, due_s, list(talk.text), turn.output_tokens)

    def end_turn(self, conversation: int, output: Sequence[int], now_s: float) -> None:
        """The turn that was sent has ended; the next one's clock starts."""
        self._num_sent -= 1
        self._talks[conversation].text += output
        self._wait(conversation, now_s)

    def _wait(self, index: int, now_s: float) -> None:
        talk = self._talks[index]
        if (turn := next(talk.turns, None)) is not None:
            due_s = max(now_s + turn.think_s, talk.arrived_s + turn.gap_s)
            heapq.heappush(self._due, (due_s, index, turn))
