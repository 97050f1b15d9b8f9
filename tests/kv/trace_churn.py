"""The churn of a real multi-turn trace on a pool of device blocks: run lengths and cache hits.

A model without tokens or time: requests of the trace are admitted in its order whenever less than
the wanted part of the pool is in use, a conversation's turns one after the other; each step, every
running request grows by one token. Token counts are divided by ``SHRINK``, so that 8,192 blocks
hold as many requests (about 110) as a batch does.
"""

import gzip
import json
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

BLOCK_TOKENS = 16
SHRINK = 6
_LOOK_AHEAD = 50  # rows of the trace that may overtake one whose conversation is busy
_STEPS_PER_SAMPLE = 20
_WARM_UP_STEPS = 100


class FreeQueue(Protocol):
    @property
    def num_free(self) -> int: ...

    def take(self, num_blocks: int, *, after: int | None = None) -> list[int]: ...

    def find(self, block: int) -> None: ...

    def give_blank(self, blocks: Sequence[int]) -> None: ...

    def give_cached(self, blocks: Sequence[int]) -> None: ...


@dataclass(frozen=True, slots=True)
class Turn:
    conversation: str
    prompt_tokens: int
    output_tokens: int


@dataclass(slots=True)
class Running:
    conversation: str
    num_tokens: int
    num_left: int
    blocks: list[int]


@dataclass(slots=True)
class ChurnResult:
    """Blocks and runs of all block tables, summed over samples; prompt blocks and hits."""

    num_blocks: int = 0
    num_runs: int = 0
    num_prompt_blocks: int = 0
    num_hit_blocks: int = 0

    @property
    def mean_run(self) -> float:
        return self.num_blocks / self.num_runs

    @property
    def hit_rate(self) -> float:
        return self.num_hit_blocks / self.num_prompt_blocks


def read_turns(path: Path) -> list[Turn]:
    with gzip.open(path, "rt") as lines:
        rows = [json.loads(line) for line in lines]
    return [
        Turn(
            row["conversation"],
            max(1, (row["history_tokens"] + row["input_tokens"]) // SHRINK),
            max(1, row["output_tokens"] // SHRINK),
        )
        for row in rows
    ]


@dataclass(slots=True)
class Churn:
    """Requests running on a queue of free blocks, with a prefix cache as vLLM's.

    A full block is cached under its place in its conversation until it is taken anew.
    """

    queue: FreeQueue
    num_blocks: int
    result: ChurnResult = field(default_factory=ChurnResult)
    running: list[Running] = field(default_factory=list)
    _block_by_place: dict[tuple[str, int], int] = field(default_factory=dict)
    _place_by_block: dict[int, tuple[str, int]] = field(default_factory=dict)

    def run(self, turns: Sequence[Turn], *, use: float) -> ChurnResult:
        """Run all turns with the part ``use`` of the pool held by running requests."""
        waiting = deque(turns)
        step = 0
        while waiting:
            self._admit(waiting, int(use * self.num_blocks))
            self._step()
            step += 1
            if step > _WARM_UP_STEPS and step % _STEPS_PER_SAMPLE == 0:
                self._sample()
        return self.result

    def _admit(self, waiting: deque[Turn], num_wanted: int) -> None:
        busy = {request.conversation for request in self.running}
        while self.num_blocks - self.queue.num_free < num_wanted:
            ready = range(min(_LOOK_AHEAD, len(waiting)))
            index = next((i for i in ready if waiting[i].conversation not in busy), None)
            if index is None or not self._start(waiting[index]):
                return
            busy.add(waiting[index].conversation)
            del waiting[index]

    def _start(self, turn: Turn) -> bool:
        num_prompt_blocks = -(-turn.prompt_tokens // BLOCK_TOKENS)
        if num_prompt_blocks > self.queue.num_free:
            return False
        hits: list[int] = []
        # The last token is always computed: its block is never a hit.
        for index in range((turn.prompt_tokens - 1) // BLOCK_TOKENS):
            block = self._block_by_place.get((turn.conversation, index))
            if block is None:
                break
            hits.append(block)
        for block in hits:
            self.queue.find(block)
        new = self._take(num_prompt_blocks - len(hits), after=hits[-1] if hits else None)
        request = Running(turn.conversation, turn.prompt_tokens, turn.output_tokens, [*hits, *new])
        self.running.append(request)
        self._cache(request, len(hits))
        self.result.num_prompt_blocks += num_prompt_blocks
        self.result.num_hit_blocks += len(hits)
        return True

    def _step(self) -> None:
        for request in list(self.running):
            if not request.num_left:
                self.running.remove(request)
                self._free(request)
                continue
            if request.num_tokens == len(request.blocks) * BLOCK_TOKENS:
                request.blocks += self._take(1, after=request.blocks[-1])
            request.num_left -= 1
            request.num_tokens += 1
            if request.num_tokens % BLOCK_TOKENS == 0:
                self._cache(request, len(request.blocks) - 1)

    def _take(self, num_blocks: int, *, after: int | None) -> list[int]:
        taken = self.queue.take(num_blocks, after=after)
        for block in taken:
            place = self._place_by_block.pop(block, None)
            if place is not None:
                del self._block_by_place[place]
        return taken

    def _cache(self, request: Running, first: int) -> None:
        for index in range(first, request.num_tokens // BLOCK_TOKENS):
            place = (request.conversation, index)
            if place not in self._block_by_place:
                self._block_by_place[place] = request.blocks[index]
                self._place_by_block[request.blocks[index]] = place

    def _free(self, request: Running) -> None:
        backwards = request.blocks[::-1]
        self.queue.give_blank([block for block in backwards if block not in self._place_by_block])
        self.queue.give_cached([block for block in backwards if block in self._place_by_block])

    def _sample(self) -> None:
        for request in self.running:
            self.result.num_blocks += len(request.blocks)
            pairs = zip(request.blocks, request.blocks[1:], strict=False)
            self.result.num_runs += 1 + sum(block + 1 != after for block, after in pairs)
