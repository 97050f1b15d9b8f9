"""How long a first token takes, learned from the requests that get theirs.

Owns the estimate: so much for each prompt token that is left, and so much besides. What is known
of a request is known to within a ranking, since nothing has a clock in between. So the price of a
prompt token is taken from whole intervals that a request spent on its prompt alone; where none
lasts that long, it is nothing, and what prompts take is part of the rest.
"""

from dataclasses import dataclass

from scheduler.ledger import Tokens
from scheduler.tracking import TrackedRequest

_KEPT = 0.9  # of what was measured before, at each measurement that adds to it
_LONGEST_INTERVAL_S = 1.0  # beyond it the clock has jumped, or it tells nothing of a token


@dataclass(slots=True)
class _Watch:
    """One request that has run ever since it started and has put nothing out."""

    request: TrackedRequest
    started_s: float
    prompt_at_start: int
    computed_tokens: int = 0  # since the last ranking
    is_whole: bool = False  # it was watched already at the last ranking


class FirstTokenTimes:
    """``prompt_token_s`` and ``besides_s``, as they are now. 0 until something is known."""

    def __init__(self) -> None:
        self.prompt_token_s = 0.0
        self.besides_s = 0.0
        self._spent_s = self._computed_tokens = 0.0  # in whole intervals
        self._watched: dict[int, _Watch] = {}  # by the live request's identity
        self._now_s = self._interval_s = 0.0

    def start(self, request: TrackedRequest) -> None:
        if not request.output_done:
            self._watched[id(request)] = _Watch(request, self._now_s, request.prompt_left)

    def progress(self, request: TrackedRequest, tokens: Tokens) -> None:
        watch = self._watched.get(id(request))
        if watch is None:
            return
        watch.computed_tokens += tokens.prompt
        if tokens.output:
            self._learn_besides(watch)
            self.forget(request)

    def forget(self, request: TrackedRequest) -> None:
        self._watched.pop(id(request), None)

    def rank(self, now_s: float) -> None:
        """An interval is over. Whoever has been displaced in it is watched no longer."""
        self._interval_s, self._now_s = now_s - self._now_s, now_s
        if self._interval_s > _LONGEST_INTERVAL_S:
            self._interval_s = 0.0
            self._watched.clear()
        self._watched = {
            key: each for key, each in self._watched.items() if each.request.is_running
        }
        self._learn_prompt_token([each for each in self._watched.values() if each.is_whole])
        for watch in self._watched.values():
            watch.is_whole, watch.computed_tokens = watch.request.prompt_left > 0, 0

    def _learn_prompt_token(self, watches: list[_Watch]) -> None:
        """From requests that spent the whole interval on their prompts, which are not done yet."""
        busy = [watch for watch in watches if watch.request.prompt_left > 0]
        if not busy:
            return
        computed_tokens = sum(watch.computed_tokens for watch in busy)
        self._spent_s = _KEPT * self._spent_s + self._interval_s * len(busy)
        self._computed_tokens = _KEPT * self._computed_tokens + computed_tokens
        if self._computed_tokens:
            self.prompt_token_s = self._spent_s / self._computed_tokens

    def _learn_besides(self, watch: _Watch) -> None:
        """From a request whose first token is out. It took as long as the rankings allow."""
        took_s = self._now_s - watch.started_s + self._interval_s
        besides_s = max(0.0, took_s - watch.prompt_at_start * self.prompt_token_s)
        self.besides_s = _KEPT * self.besides_s + (1 - _KEPT) * besides_s
