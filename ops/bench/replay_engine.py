"""The process of an engine that replays conversations, stepped by hand.

Run as ``python -m ops.bench.replay_engine``: the engine's arguments as one line of JSON on
standard input, then a ``Replay`` per line; each is answered with a ``ReplayResult`` per line. The
clients live in the same loop as the engine and look at its outputs after every step, as its
gateway would; no server is in the times.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from time import perf_counter, sleep
from typing import Any

from vllm import LLMEngine, SamplingParams
from vllm.sampling_params import RequestOutputKind

from deployments.vllm_engine import make_engine_args
from ops.bench.answering import answer_lines
from ops.bench.closed_loop import ClosedLoop, DueTurn
from ops.bench.priorities import PATTERNS
from ops.bench.replay import Replay, ReplayResult, since
from scheduler.reports import SwitchCounts


@dataclass(slots=True)
class _SentTurn:
    """A turn inside the engine, under vLLM's internal id, and what its client has seen of it."""

    internal_id: str
    conversation: int
    due_s: float
    output: list[int] = field(default_factory=list)
    seen_s: float = 0.0


class _Playing:
    """One replay on an engine: the clients, their clocks and the priorities."""

    def __init__(self, engine: LLMEngine, replay: Replay) -> None:
        self._engine, self._replay = engine, replay
        self._scheduler = engine.engine_core.engine_core.scheduler
        self._loop = ClosedLoop(replay.conversations)
        names = [one.name for one in replay.conversations]
        self._updates = PATTERNS[replay.pattern](replay.seed, names)
        self._levels = next(self._updates)
        self._sent: dict[str, _SentTurn] = {}
        self._outputs: list[list[list[int]]] = [[] for _ in names]
        self._first_tokens_s: list[float] = []
        self._gaps_s: list[float] = []
        self._num_steps = 0
        self._began_s = perf_counter()

    def run(self) -> ReplayResult:
        before = self._switches()
        self._began_s = perf_counter()
        while not self._loop.is_over:
            for turn in self._loop.take_due(self._now_s()):
                self._send(turn)
            if self._sent:
                self._step()
            elif self._loop.next_due_s is not None:
                sleep(max(0.0, self._loop.next_due_s - self._now_s()))
        return ReplayResult(
            wall_s=self._now_s(),
            num_steps=self._num_steps,
            first_tokens_s=self._first_tokens_s,
            gaps_s=self._gaps_s,
            outputs=[output for outputs in self._outputs for output in outputs],
            switches=since(before, self._switches()),
        )

    def _now_s(self) -> float:
        return perf_counter() - self._began_s

    def _switches(self) -> SwitchCounts:
        return self._scheduler.take_progress(False).switches  # noqa: FBT003 - by position only

    def _send(self, turn: DueTurn) -> None:
        # One token per step and request: ids alone, without text, keep the clients' cost small.
        params = SamplingParams(
            temperature=0,
            ignore_eos=True,
            max_tokens=turn.output_tokens,
            detokenize=False,
            output_kind=RequestOutputKind.DELTA,
        )
        name = f"{turn.conversation}-{len(self._outputs[turn.conversation])}"
        internal_id = self._engine.add_request(
            name,
            {"prompt_token_ids": turn.prompt},
            params,
            priority=self._levels[turn.conversation],
        )
        self._sent[name] = _SentTurn(internal_id, turn.conversation, turn.due_s)

    def _step(self) -> None:
        self._num_steps += 1
        if self._num_steps % self._replay.steps_per_update == 0:
            self._levels = next(self._updates)
            self._scheduler.set_priorities(
                {one.internal_id: self._levels[one.conversation] for one in self._sent.values()}
            )
        outputs = self._engine.step()
        now_s = self._now_s()
        for output in outputs:
            self._see(self._sent[output.request_id], output.outputs[0].token_ids, now_s)
            if output.finished:
                self._end(self._sent.pop(output.request_id), now_s)

    def _see(self, turn: _SentTurn, tokens: list[int], now_s: float) -> None:
        if not tokens:
            return
        if turn.output:
            self._gaps_s.append(now_s - turn.seen_s)
        else:
            self._first_tokens_s.append(now_s - turn.due_s)
        self._gaps_s += [0.0] * (len(tokens) - 1)  # came together with the one before
        turn.output += tokens
        turn.seen_s = now_s

    def _end(self, turn: _SentTurn, now_s: float) -> None:
        self._outputs[turn.conversation].append(turn.output)
        self._loop.end_turn(turn.conversation, turn.output, now_s)


def make_engine(arguments: Mapping[str, Any]) -> LLMEngine:
    return LLMEngine.from_engine_args(make_engine_args(arguments))


def main() -> None:
    def make_answer(arguments: dict[str, Any]) -> Callable[[Replay], ReplayResult]:
        engine = make_engine(arguments)
        return lambda replay: _Playing(engine, replay).run()

    answer_lines(make_answer, Replay)


if __name__ == "__main__":
    main()
