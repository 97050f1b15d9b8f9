"""The process of a vLLM engine that is stepped by hand.

Run as ``python -m ops.bench.stepped_engine``: the engine's arguments as one line of JSON on
standard input, then a ``Trial`` per line; each is answered with a ``TrialResult`` per line. In
process and without a server, so that steps can be counted and nothing else is in the times.
"""

from collections.abc import Mapping
from time import perf_counter
from typing import Any

from vllm import LLMEngine, SamplingParams

from deployments.vllm_engine import make_engine_args
from ops.bench.answering import answer_lines
from ops.bench.stepped import Trial, TrialResult
from ops.bench.workload import WorkItem

URGENT_PRIORITY, BACKGROUND_PRIORITY = 0, 1  # lower runs first
URGENT_ID = "urgent"


class HandStepped:
    """vLLM's engine and the tokens it has given so far, by request."""

    def __init__(self, engine_args: Mapping[str, Any]) -> None:
        self._engine = LLMEngine.from_engine_args(make_engine_args(engine_args))
        self._tokens: dict[str, list[int]] = {}

    def run(self, trial: Trial) -> TrialResult:
        self._tokens = {}
        ids = [f"background-{number}" for number in range(len(trial.background))]
        for request_id, item in zip(ids, trial.background, strict=True):
            self._send(request_id, item, BACKGROUND_PRIORITY)
        for _ in range(trial.lead_steps):
            self._step()
        begin_s = perf_counter()
        self._send(URGENT_ID, trial.urgent, URGENT_PRIORITY)
        steps = 0
        while URGENT_ID not in self._tokens:
            self._step()
            steps += 1
        first_token_s = perf_counter() - begin_s
        while self._engine.has_unfinished_requests():
            self._step()
        drained_s = perf_counter() - begin_s
        outputs = [self._tokens[request_id] for request_id in (*ids, URGENT_ID)]
        return TrialResult(steps, first_token_s, drained_s, outputs)

    def _send(self, request_id: str, item: WorkItem, priority: int) -> None:
        params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=item.output_tokens)
        prompt = {"prompt_token_ids": item.prompt}
        self._engine.add_request(request_id, prompt, params, priority=priority)

    def _step(self) -> None:
        for output in self._engine.step():
            if tokens := output.outputs[0].token_ids:
                self._tokens[output.request_id] = list(tokens)


def main() -> None:
    answer_lines(lambda arguments: HandStepped(arguments).run, Trial)


if __name__ == "__main__":
    main()
