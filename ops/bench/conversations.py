"""Conversations of several turns, from a trace's rows or from a seed, cut to a demo's size.

Owns the workload of ``bench switch``: who says how much and when. Rows keep their proportions:
token counts and times are each scaled by one constant. Without a trace the rows are drawn in the
shape of chats over a document: a long first prompt, then short ones and longer answers. A turn's
ids are drawn here; the output they lead to comes from the engine.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from random import Random

import msgspec

from ops.bench.workload import TraceRow, random_ids

_TURNS = (3, 7)
_ARRIVAL_S, _THINK_S = 2.0, 20.0  # means


@dataclass(frozen=True, slots=True)
class _LogNormal:
    """Token counts around a median."""

    median: float
    spread: float

    def draw(self, random: Random) -> int:
        return max(1, round(self.median * random.lognormvariate(0.0, self.spread)))


_FIRST_INPUT, _LATER_INPUT = _LogNormal(4000, 0.3), _LogNormal(100, 0.5)
_OUTPUT = _LogNormal(450, 0.4)


class Turn(msgspec.Struct, array_like=True, frozen=True):
    """One request.

    Its prompt is the conversation so far without its last ``num_dropped`` tokens, then
    ``new_ids``. It is sent ``think_s`` after the previous turn's end, at the earliest ``gap_s``
    after the previous turn's arrival.
    """

    new_ids: list[int]
    output_tokens: int
    num_dropped: int
    think_s: float
    gap_s: float


class Conversation(msgspec.Struct, array_like=True, frozen=True):
    """Turns of one client; the first arrives at ``arrival_s``."""

    name: str
    arrival_s: float
    turns: list[Turn]

    @property
    def longest(self) -> int:
        """Tokens of the longest prompt and output together."""
        return max(prompt + turn.output_tokens for prompt, turn in self._prompts())

    def _prompts(self) -> Iterable[tuple[int, Turn]]:
        so_far = 0
        for turn in self.turns:
            prompt = so_far - turn.num_dropped + len(turn.new_ids)
            yield prompt, turn
            so_far = prompt + turn.output_tokens


class Scale(msgspec.Struct, frozen=True):
    """What token counts and seconds of the rows are multiplied by; no pause is then longer."""

    tokens: float
    seconds: float
    longest_pause_s: float

    def num_tokens(self, count: int) -> int:
        return max(1, int(count * self.tokens))

    def pause_s(self, seconds: float) -> float:
        return round(min(seconds * self.seconds, self.longest_pause_s), 6)


def synthetic_rows(seed: str, num_conversations: int) -> list[TraceRow]:
    """Rows as a trace's, from a seed."""
    random = Random(seed)
    rows: list[TraceRow] = []
    arrival_s = 0.0
    for number in range(num_conversations):
        history = 0
        for turn in range(random.randint(*_TURNS)):
            row = TraceRow(
                conversation=f"c{number}",
                history_tokens=history,
                input_tokens=(_LATER_INPUT if turn else _FIRST_INPUT).draw(random),
                output_tokens=_OUTPUT.draw(random),
                arrival_s=arrival_s,
                think_s=random.expovariate(1 / _THINK_S) if turn else None,
            )
            rows.append(row)
            history += row.input_tokens + row.output_tokens
        arrival_s += random.expovariate(1 / _ARRIVAL_S)
    return rows


def by_conversation(
    rows: Iterable[TraceRow], num_conversations: int, max_turns: int
) -> list[list[TraceRow]]:
    """The turns, at most ``max_turns``, of the first conversations that have more than one."""
    turns: dict[str, list[TraceRow]] = {}
    for row in rows:
        turns.setdefault(row.conversation, []).append(row)
    several = [each[:max_turns] for each in turns.values() if len(each) > 1]
    return several[:num_conversations]


def scale_to(
    groups: Sequence[Sequence[TraceRow]],
    *,
    context_tokens: int,
    arrivals_s: float,
    longest_pause_s: float,
) -> Scale:
    """So that the longest turn has about ``context_tokens``, and all begin within ``arrivals_s``.

    Short turns are left as long as they are.
    """
    longest = max(row.prompt_tokens + row.output_tokens for group in groups for row in group)
    firsts = [group[0].arrival_s for group in groups]
    span_s = max(firsts) - min(firsts)
    return Scale(
        tokens=min(1.0, context_tokens / longest),
        seconds=arrivals_s / span_s if span_s else 0.0,
        longest_pause_s=longest_pause_s,
    )


def scaled(groups: Sequence[Sequence[TraceRow]], scale: Scale, seed: str) -> list[Conversation]:
    """The conversations to be played; the same arguments give the same ids."""
    begin_s = min(group[0].arrival_s for group in groups)
    return [
        Conversation(
            name=group[0].conversation,
            arrival_s=round((group[0].arrival_s - begin_s) * scale.seconds, 6),
            turns=_turns(group, scale, seed),
        )
        for group in groups
    ]


def _turns(rows: Sequence[TraceRow], scale: Scale, seed: str) -> list[Turn]:
    random = Random(f"{seed} {rows[0].conversation}")
    turns: list[Turn] = []
    so_far = so_far_in_trace = 0
    for row in rows:
        num_new, num_output = (
            scale.num_tokens(row.input_tokens),
            scale.num_tokens(row.output_tokens),
        )
        # A trace whose client edited its context reuses less than all that was said.
        gone = max(0, so_far_in_trace - row.history_tokens) if turns else 0
        num_dropped = min(so_far, int(gone * scale.tokens))
        turns.append(
            Turn(
                new_ids=random_ids(random, num_new),
                output_tokens=num_output,
                num_dropped=num_dropped,
                think_s=scale.pause_s(row.think_s or 0.0) if turns else 0.0,
                gap_s=scale.pause_s(row.gap_s or 0.0) if turns and row.think_s is None else 0.0,
            )
        )
        so_far += num_new + num_output - num_dropped
        so_far_in_trace = row.prompt_tokens + row.output_tokens
    return turns
