"""vLLM's scheduler, with steps in which a better-ranked prompt does not wait for lower-ranked ones.

Owns how many tokens a step may have. vLLM fills each step with whatever prompts there are, and
all in it get their first token when it ends: where a token of a prompt takes a while, an urgent
request would wait for prompts that were to come after it. Decodes take a token each, and stay.
"""

import heapq
from typing import Any

from vllm.v1.request import Request

from scheduler.vllm_displacement import rank
from scheduler.vllm_pins import PinningScheduler


class PrefillingScheduler(PinningScheduler):
    """A scheduler that knows whose prompts a step is for."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._most_tokens = self._token_budget

    def _limit_prefills(self, num_shared_tokens: int) -> None:
        """Give this step the tokens of the best-ranked prompts, and so many for those behind.

        The others' prompts may then lengthen it by no more than these tokens take.
        """
        budget = self._num_best_ranked_tokens() + num_shared_tokens
        self._token_budget = self.max_num_scheduled_tokens = min(budget, self._most_tokens)

    def _num_best_ranked_tokens(self) -> int:
        """Tokens of all decodes, and of the prompts of the best rank that any prompt has.

        As many as a step may have where those are all. What of a waiting prompt is cached
        somewhere counts too: to find that out takes a while.
        """
        decodes, prefills = self._split_running()
        prompts = heapq.merge(prefills, *map(self._ready, self._queues), key=rank)
        first = next(prompts, None)
        if first is None:
            return self._most_tokens
        num_tokens = len(decodes) + _num_left(first)
        for request in prompts:
            if request.priority > first.priority:
                return num_tokens
            num_tokens += _num_left(request)
            if num_tokens >= self._most_tokens:
                break
        return self._most_tokens


def _num_left(request: Request) -> int:
    left: int = request.num_tokens - request.num_computed_tokens
    return left
