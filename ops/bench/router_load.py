"""What a router is asked and told: tenants that send requests, and engines that run them.

Owns the load of `bench router`: who sends what next, and stand-in engines that keep their
requests with the engine's own ``ProgressTracker`` and report in its own encoding. An engine here
computes nothing: in each round the most urgent of its requests move by a few tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random

import msgspec

from deployments.messages import Admit, Report
from deployments.prefixes import LONGEST_TOKENS, SHORTEST_TOKENS
from ops.bench.workload import Span
from scheduler.admission import AdmitRequest
from scheduler.progress import ProgressTracker, Standing
from scheduler.reports import EngineProgress, LiveRequest, SwitchCounts

MAX_NUM_SEQS = 64
STEPS_PER_ROUND = 4  # a tenth of a second of decoding
PREFILL_TOKENS = 2048  # of one request in one round
PROMPT, OUTPUT = Span(64, 4096), Span(32, 512)
FOLLOW_UP_SHARE = 0.7  # of requests that go on with a conversation whose last turn has ended
BLOCK_TOKENS, BLOCKS_TOTAL = 16, 32_768
# What each tenant has had of each engine before the router came: all of it is in its books.
PAST_SERVICE = (100_000, 20_000)


@dataclass(frozen=True, slots=True)
class Turn:
    """A request, and how many tokens it will put out, which only its engine knows."""

    request: AdmitRequest
    output_tokens: int

    @property
    def message(self) -> bytes:
        return msgspec.msgpack.encode(Admit(self.request))


class Arrivals:
    """Who sends the next request: few tenants much and many little, in conversations of turns.

    The tenant of rank r sends in proportion to 1/r, so that the small ones come and go.
    """

    def __init__(self, seed: str, num_tenants: int) -> None:
        self._random = Random(seed)
        self._tenants = [f"tenant-{number:04d}" for number in range(num_tenants)]
        self._odds = [1 / rank for rank in range(1, num_tenants + 1)]
        self._ended: list[AdmitRequest] = []
        self._num_requests = 0

    @property
    def tenants(self) -> Sequence[str]:
        return self._tenants

    def one_each(self) -> Iterator[Turn]:
        """New conversations, the tenants in turn, for ever."""
        while True:
            for tenant in self._tenants:
                yield self._first(tenant)

    def next(self) -> Turn:
        if self._ended and self._random.random() < FOLLOW_UP_SHARE:
            place = self._random.randrange(len(self._ended))
            self._ended[place], self._ended[-1] = self._ended[-1], self._ended[place]
            last = self._ended.pop()
            return self._turn(last.tenant, last.conversation, last.prefixes, last.prompt_tokens)
        [tenant] = self._random.choices(self._tenants, self._odds)
        return self._first(tenant)

    def ended(self, request: AdmitRequest) -> None:
        """A turn has ended: its conversation may go on."""
        self._ended.append(request)

    def _first(self, tenant: str) -> Turn:
        return self._turn(tenant, f"conversation-{self._num_requests:08d}", [], 0)

    def _turn(
        self, tenant: str, conversation: str | None, prefixes: list[int], history_tokens: int
    ) -> Turn:
        self._num_requests += 1
        added_tokens = self._random.randint(PROMPT.low, PROMPT.high)
        prompt_tokens = history_tokens + added_tokens
        num_new = _num_fingerprints(prompt_tokens) - len(prefixes)
        request = AdmitRequest(
            request_id=f"cmpl-{self._random.getrandbits(128):032x}",
            tenant=tenant,
            conversation=conversation,
            prompt_tokens=prompt_tokens,
            max_output_tokens=OUTPUT.high,
            arrival_s=float(self._num_requests),
            prefixes=prefixes + [self._random.getrandbits(63) for _ in range(num_new)],
        )
        return Turn(request, self._random.randint(OUTPUT.low, OUTPUT.high))


def _num_fingerprints(prompt_tokens: int) -> int:
    """Of doubling lengths, as gateways make them."""
    return (min(prompt_tokens, LONGEST_TOKENS) // SHORTEST_TOKENS).bit_length()


@dataclass(slots=True)
class _Resident:
    """One request on a stand-in engine."""

    turn: Turn
    priority: int
    computed_tokens: int = 0
    output_tokens: int = 0
    is_running: bool = False

    @property
    def standing(self) -> Standing:
        return Standing(
            prompt_tokens=self.turn.request.prompt_tokens,
            computed_tokens=self.computed_tokens,
            output_tokens=self.output_tokens,
            priority=self.priority,
            is_running=self.is_running,
        )

    def run(self) -> None:
        """Prefill what is left of the prompt; once there is nothing left, decode."""
        prompt_left = self.turn.request.prompt_tokens - self.computed_tokens
        if prompt_left > 0:
            self.computed_tokens += min(prompt_left, PREFILL_TOKENS)
        else:
            tokens = min(STEPS_PER_ROUND, self.turn.output_tokens - self.output_tokens)
            self.output_tokens += tokens
            self.computed_tokens += tokens


class StandInEngine:
    """Runs its most urgent requests, as many as it has seats, and tells how far they have come."""

    def __init__(
        self, engine_id: str, tenants: Sequence[str], max_num_seqs: int = MAX_NUM_SEQS
    ) -> None:
        self.engine_id = engine_id
        self.max_num_seqs = max_num_seqs
        self._service = dict.fromkeys(tenants, PAST_SERVICE)
        self._tracker = ProgressTracker()
        self._residents: dict[str, _Resident] = {}
        self._step = 0

    def take(self, turn: Turn, priority: int) -> None:
        resident = _Resident(turn, priority)
        request = turn.request
        self._residents[request.request_id] = resident
        self._tracker.arrive(
            request.request_id,
            tenant=request.tenant,
            conversation=request.conversation,
            arrival_s=request.arrival_s,
            standing=resident.standing,
        )

    def obey(self, priorities: Mapping[str, int]) -> None:
        for request_id, priority in priorities.items():
            self._residents[request_id].priority = priority

    def run(self) -> list[Turn]:
        """One round; the turns that have ended in it."""
        self._step += STEPS_PER_ROUND
        urgent_first = sorted(
            self._residents.values(), key=lambda one: (one.priority, one.turn.request.arrival_s)
        )
        ended = []
        for place, resident in enumerate(urgent_first):
            resident.is_running = place < self.max_num_seqs
            if resident.is_running:
                resident.run()
            request_id = resident.turn.request.request_id
            self._tracker.advance(request_id, resident.standing)
            if resident.output_tokens == resident.turn.output_tokens:
                self._tracker.finish(request_id, "stop")
                del self._residents[request_id]
                ended.append(resident.turn)
        return ended

    def report(self, *, is_full: bool = False) -> bytes:
        movement = self._tracker.take(is_full=is_full)
        num_running = sum(one.is_running for one in self._residents.values())
        progress = EngineProgress(
            step=self._step,
            is_full=is_full,
            live=movement.live,
            finished=movement.finished,
            num_running=num_running,
            num_waiting=len(self._residents) - num_running,
            blocks_used=self._blocks_used(movement.live),
            blocks_total=BLOCKS_TOTAL,
            host_blocks_used=0,
            host_blocks_total=BLOCKS_TOTAL,
            switches=SwitchCounts(),
            tenant_service=self._service if is_full else {},
        )
        return msgspec.msgpack.encode(Report(self.engine_id, progress))

    def _blocks_used(self, live: Sequence[LiveRequest]) -> int:
        return sum(-(-(one.prompt_done + one.output_done) // BLOCK_TOKENS) for one in live)
