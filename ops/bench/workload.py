"""What a benchmark asks for: prompts as token ids and the number of tokens to generate.

Owns making requests from a seed or from a trace's counts; the same arguments give the same
requests. Ids instead of text make a prompt exactly as long as it is meant to be with any model,
and keep the tokenizer, which is the same in all servers, out of the numbers.
"""

import gzip
import re
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random

import msgspec

from ops.bench.errors import TraceError

# Every vocabulary has these: bytes in the demo model and Llama's, short pieces in others.
_FIRST_ID, _LAST_ID = 3, 255


class WorkItem(msgspec.Struct, array_like=True, frozen=True):
    """One request."""

    prompt: list[int]
    output_tokens: int
    conversation: str | None = None


class TraceRow(msgspec.Struct, frozen=True):
    """What is used of a trace's row; the format is described beside the traces."""

    conversation: str
    history_tokens: int
    input_tokens: int
    output_tokens: int
    arrival_s: float = 0.0
    think_s: float | None = None
    gap_s: float | None = None
    tenant: str = ""

    @property
    def prompt_tokens(self) -> int:
        return self.history_tokens + self.input_tokens


@dataclass(frozen=True, slots=True)
class Span:
    """Token counts from ``low`` to ``high``, both included."""

    low: int
    high: int

    def __str__(self) -> str:
        return f"{self.low}:{self.high}"

    @classmethod
    def parse(cls, text: str) -> "Span":
        """``64:192``, or ``128`` for exactly that many.

        Raises:
            ValueError: it is neither, or upside down, or allows no token at all.
        """
        counts = re.fullmatch(r"(\d{1,9})(?::(\d{1,9}))?", text, re.ASCII)
        if counts:
            span = cls(int(counts[1]), int(counts[2] or counts[1]))
            if 1 <= span.low <= span.high:
                return span
        raise ValueError(f"{text!r} is no span of token counts, such as 64:192 or 128")


def synthetic(seed: str, count: int, *, prompt: Span, output: Span) -> list[WorkItem]:
    """Requests with uniformly distributed lengths and no prefix in common."""
    random = Random(seed)
    return [
        WorkItem(
            random_ids(random, random.randint(prompt.low, prompt.high)),
            random.randint(output.low, output.high),
        )
        for _ in range(count)
    ]


def read_trace(path: Path) -> list[TraceRow]:
    """The rows of a gzip JSON Lines trace, in order of arrival.

    Raises:
        TraceError: it cannot be read, or a row is not one.
    """
    decode = msgspec.json.Decoder(TraceRow).decode
    try:
        return [decode(line) for line in gzip.decompress(path.read_bytes()).splitlines()]
    except (OSError, EOFError, zlib.error) as error:
        raise TraceError(path, f"cannot be read: {error}") from None
    except msgspec.DecodeError as error:
        raise TraceError(path, f"a row is not one: {error}") from None


def fitting(rows: Iterable[TraceRow], max_model_len: int) -> list[TraceRow]:
    """The rows whose prompt and output the model can take."""
    return [row for row in rows if row.prompt_tokens + row.output_tokens <= max_model_len]


def replay(rows: Sequence[TraceRow], seed: str) -> list[WorkItem]:
    """One request per row, with the row's lengths.

    All turns of a conversation are prefixes of one text, so that what a turn reuses of the one
    before is reusable here as well.
    """
    longest: dict[str, int] = {}
    for row in rows:
        known = longest.get(row.conversation, 0)
        longest[row.conversation] = max(known, row.prompt_tokens)
    texts = {name: random_ids(Random(f"{seed} {name}"), size) for name, size in longest.items()}
    return [
        WorkItem(texts[row.conversation][: row.prompt_tokens], row.output_tokens, row.conversation)
        for row in rows
    ]


def random_ids(random: Random, count: int) -> list[int]:
    return random.choices(range(_FIRST_ID, _LAST_ID + 1), k=count)
