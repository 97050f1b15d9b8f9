"""How far each request of one engine has come, and what each tenant has been served.

Owns high-water marks: a position counts once, however often it is computed. Knows requests by
id and facts by value; ``scheduler.vllm_scheduler`` feeds it and adds the engine's own counts.
"""

from collections import defaultdict
from collections.abc import KeysView
from dataclasses import dataclass

import msgspec

from scheduler.reports import FinishedRequest, LiveRequest


class Standing(msgspec.Struct, frozen=True):
    """Where a request stands in its engine right now."""

    prompt_tokens: int
    computed_tokens: int  # falls back to 0 when its KV is thrown away or swapped out
    output_tokens: int
    priority: int
    is_running: bool


@dataclass(frozen=True, slots=True)
class Movement:
    """Who moved since the last time somebody asked, and who has left."""

    live: list[LiveRequest]
    finished: list[FinishedRequest]


@dataclass(slots=True)
class _Mark:
    tenant: str
    conversation: str | None
    arrival_s: float
    standing: Standing
    prompt_done: int = 0
    output_done: int = 0


class ProgressTracker:
    """High-water marks of live requests, and the service of their tenants.

    A mark never falls, and a tenant's service is the sum of its requests' marks, those that have
    finished included.
    """

    def __init__(self) -> None:
        self.recomputed_tokens = 0
        self._marks: dict[str, _Mark] = {}
        self._moved: dict[str, None] = {}  # in order, as a set would not be
        self._finished: list[FinishedRequest] = []
        self._prompt_service: defaultdict[str, int] = defaultdict(int)
        self._output_service: defaultdict[str, int] = defaultdict(int)
        self._fell_from: dict[str, int] = {}

    @property
    def tenant_service(self) -> dict[str, tuple[int, int]]:
        """Prompt and output tokens processed since the engine started, by tenant."""
        return {
            tenant: (prompt, self._output_service[tenant])
            for tenant, prompt in self._prompt_service.items()
        }

    @property
    def moved(self) -> KeysView[str]:
        """Requests already known to have moved since the last ``take``."""
        return self._moved.keys()

    @property
    def fallen_back(self) -> KeysView[str]:
        """Requests whose KV is gone from the device and not yet computed or loaded again."""
        return self._fell_from.keys()

    def arrive(
        self,
        request_id: str,
        *,
        tenant: str,
        conversation: str | None,
        arrival_s: float,
        standing: Standing,
        output_done: int = 0,
    ) -> None:
        """Take in a request, of which another engine may have put out so much: that is no news."""
        prompt_done = standing.prompt_tokens if output_done else 0
        self._marks[request_id] = _Mark(
            tenant, conversation, arrival_s, standing, prompt_done, output_done
        )
        self._moved[request_id] = None

    def advance(self, request_id: str, standing: Standing) -> None:
        """Take note of where a request stands."""
        mark = self._marks[request_id]
        prompt_done = min(standing.computed_tokens, standing.prompt_tokens)
        gained_prompt = max(prompt_done - mark.prompt_done, 0)
        gained_output = max(standing.output_tokens - mark.output_done, 0)
        if gained_prompt or gained_output or standing.is_running != mark.standing.is_running:
            self._moved[request_id] = None
        mark.standing = standing
        mark.prompt_done += gained_prompt
        mark.output_done += gained_output
        self._prompt_service[mark.tenant] += gained_prompt
        self._output_service[mark.tenant] += gained_output

    def fall_back(self, request_id: str, computed_tokens: int) -> None:
        """A request loses its place on the device: below ``computed_tokens`` all is repetition."""
        self._fell_from[request_id] = max(computed_tokens, self._fell_from.get(request_id, 0))
        self._moved[request_id] = None

    def catch_up(self, request_id: str, first_token: int, end_token: int) -> None:
        """A request that fell back computes tokens ``first_token`` to ``end_token - 1``."""
        fell_from = self._fell_from[request_id]
        self.recomputed_tokens += max(min(end_token, fell_from) - first_token, 0)
        if end_token >= fell_from:
            del self._fell_from[request_id]

    def finish(self, request_id: str, reason: str) -> None:
        mark = self._marks.pop(request_id)
        self._moved.pop(request_id, None)
        self._fell_from.pop(request_id, None)
        self._finished.append(
            FinishedRequest(
                request_id=request_id,
                tenant=mark.tenant,
                prompt_tokens=mark.standing.prompt_tokens,
                prompt_done=mark.prompt_done,
                output_done=mark.output_done,
                reason=reason,
            )
        )

    def take(self, *, is_full: bool) -> Movement:
        """Who moved and who left since the last call; everybody live when ``is_full``."""
        chosen = self._marks if is_full else self._moved
        movement = Movement([self._live(request_id) for request_id in chosen], self._finished)
        self._moved, self._finished = {}, []
        return movement

    def _live(self, request_id: str) -> LiveRequest:
        mark = self._marks[request_id]
        return LiveRequest(
            request_id=request_id,
            tenant=mark.tenant,
            conversation=mark.conversation,
            arrival_s=mark.arrival_s,
            prompt_tokens=mark.standing.prompt_tokens,
            prompt_done=mark.prompt_done,
            output_done=mark.output_done,
            priority=mark.standing.priority,
            is_running=mark.standing.is_running,
        )
