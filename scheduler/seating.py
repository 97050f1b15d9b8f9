"""Which engine a request goes to, and whether any has room for it now.

Owns each engine's seats: how many requests it may have at once, how much memory those will want,
how busy it is. A request that no engine has room for waits in the fleet's line, where it can still
be overtaken by whoever is more urgent; in an engine's own queue it could not go elsewhere any more.

- Room: a seat is free, or one of a few places behind the seats (so that an engine does not run dry
  between two reports), and the memory that all its requests will hold at their peak is there.
- No room, but somebody runs there whom the request outranks, and those as urgent as it is might all
  be done before the next report (at the soonest one per seat and step): it goes there, displaces
  somebody or is the next to. So as long as somebody more urgent is in line, nobody less urgent runs
  instead, and policies can promise what they do. Who is displaced stays where its KV is.
- Affinity: the engine that had the conversation, or a prefix, last keeps the request while its load
  is within ``AFFINITY_BOUND`` of the mean.
- Nothing cached: the less loaded of two engines drawn at random ("the power of two choices"); one
  with a seat free, or somebody to displace, before one where the request would wait.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from random import Random

from scheduler.admission import EngineCapacity
from scheduler.lookahead import peak_tokens
from scheduler.tracking import RequestTable, TrackedRequest
from scheduler.worst_first import WorstFirst

AFFINITY_BOUND = 1.25  # of the mean load: how much busier than others a warm engine may be
# Predictions err, and memory that runs short costs a switch, memory that lies idle throughput.
OVERCOMMIT = 1.125
PLACES_PER_SEAT = 1 / 4  # behind the seats, at least
# Behind the seats there are places for so many times what ends between two reports.
PLACES_PER_END = 2.0


@dataclass(slots=True)
class _Seats:
    """One engine. ``priorities`` are those of its requests as of its last report.

    ``worst_running`` is that of the least urgent one that runs.
    """

    num_seats: int
    num_tokens: float  # that its requests may hold at their peak
    num_ended: float = 0.0  # requests per report, lately
    num_steps: float = 0.0  # per report, lately at most
    priorities: list[int] = field(default_factory=list)
    worst_running: int | None = None

    def has_turn_for(self, priority: int) -> bool:
        """Whether those as urgent as this may all run before there is another report to act on."""
        num_runnable = self.num_seats * (1 + self.num_steps)
        if len(self.priorities) < num_runnable:
            return True
        return sum(other <= priority for other in self.priorities) < num_runnable

    @property
    def num_places(self) -> float:
        behind = max(self.num_seats * PLACES_PER_SEAT, PLACES_PER_END * self.num_ended, 1.0)
        return self.num_seats + behind


class Seating:
    """The engines' seats. Requests are looked up in the table, which others keep.

    Every engine that may have room is in ``_roomy``; one that is in there may have none.
    """

    def __init__(self, requests: RequestTable, random: Random) -> None:
        self._requests = requests
        self._random = random
        self._seats: dict[str, _Seats] = {}
        self._engine_ids: list[str] = []
        self._num_seats = 0  # of all engines
        self._roomy: dict[str, None] = {}
        self._worst_first = WorstFirst()

    def join(self, engine_id: str, capacity: EngineCapacity) -> None:
        self._seats[engine_id] = _Seats(
            num_seats=capacity.max_num_seqs,
            num_tokens=OVERCOMMIT * capacity.blocks_total * capacity.block_tokens,
        )
        self._count_engines()
        self._roomy[engine_id] = None

    def leave(self, engine_id: str) -> None:
        if self._seats.pop(engine_id, None) is not None:
            self._count_engines()
            self._roomy.pop(engine_id, None)
            self._worst_first.drop(engine_id)

    def note_departure(self, engine_id: str) -> None:
        """A request is not on this engine any more, so there may be room."""
        if engine_id in self._seats:
            self._roomy[engine_id] = None

    def note_report(self, engine_id: str, *, num_ended: int, num_steps: int) -> None:
        """What an engine did since its last report: requests that ended, steps it made."""
        seats = self._seats[engine_id]
        seats.num_ended += (num_ended - seats.num_ended) / 4
        seats.num_steps = max(num_steps, seats.num_steps + (num_steps - seats.num_steps) / 16)
        self._roomy[engine_id] = None

    def note_priorities(
        self, engine_id: str, priorities: list[int], *, worst_running: int | None
    ) -> None:
        """An engine's requests have these priorities, and of those that run the last has this."""
        seats = self._seats[engine_id]
        seats.priorities, seats.worst_running = priorities, worst_running
        if worst_running is None:
            self._worst_first.drop(engine_id)
        else:
            self._worst_first.put(engine_id, worst_running, self._load(engine_id))

    def forget_priorities(self) -> None:
        """Priorities mean something else from now on; each engine's next report has the new ones.

        Until then nobody outranks anybody: old and new ones do not compare.
        """
        for engine_id, seats in self._seats.items():
            seats.priorities, seats.worst_running = [], None
            self._worst_first.drop(engine_id)

    def choose(
        self, request: TrackedRequest, priority: int, *, warm: str | None, avoid: Collection[str]
    ) -> str | None:
        """The engine for a request, which then goes there; None while there is none for it.

        ``warm`` is the engine that is likely to have some of its KV, if any is known.
        """
        engine_id = (
            self._warm(warm, request, priority, avoid)
            or self._less_loaded_of_two(request, priority, avoid)
            or self._least_loaded_with_room(request, priority, avoid)
            or self._where_outranked(priority, avoid)
        )
        if engine_id is not None:
            self._note_chosen(engine_id, request, priority)
        return engine_id

    def _note_chosen(self, engine_id: str, request: TrackedRequest, priority: int) -> None:
        seats = self._seats[engine_id]
        seats.priorities.append(priority)
        if seats.worst_running is not None:
            load = self._load(engine_id) + request.load_units / seats.num_seats
            self._worst_first.put(engine_id, seats.worst_running, load)

    def _warm(
        self, warm: str | None, request: TrackedRequest, priority: int, avoid: Collection[str]
    ) -> str | None:
        """The warm engine, if it is one of ours, not too busy, and takes the request now."""
        if warm is None or warm not in self._seats or warm in avoid:
            return None
        takes = self._has_room(warm, request) or self._is_outranked(warm, priority)
        return warm if takes and self._keeps(warm, request) else None

    def _keeps(self, engine_id: str, request: TrackedRequest) -> bool:
        """Whether affinity may take a request to this engine.

        Its own load is allowed beyond the bound, else an idle fleet would be too busy for any.
        """
        mean = self._requests.placed_load / self._num_seats
        own = request.load_units / self._seats[engine_id].num_seats
        return self._load(engine_id) <= AFFINITY_BOUND * mean + own

    def _less_loaded_of_two(
        self, request: TrackedRequest, priority: int, avoid: Collection[str]
    ) -> str | None:
        drawn = self._random.sample(self._engine_ids, min(2, len(self._engine_ids)))
        return self._best(
            (one for one in drawn if one not in avoid and self._has_room(one, request)), priority
        )

    def _least_loaded_with_room(
        self, request: TrackedRequest, priority: int, avoid: Collection[str]
    ) -> str | None:
        with_room = [one for one in self._roomy if self._has_room(one, request)]
        # Looked at again when something has changed: this is asked for each request that waits.
        self._roomy = dict.fromkeys(with_room)
        return self._best((one for one in with_room if one not in avoid), priority)

    def _where_outranked(self, priority: int, avoid: Collection[str]) -> str | None:
        for engine_id, worst_running in self._worst_first:
            if worst_running <= priority:
                return None
            if engine_id not in avoid and self._is_outranked(engine_id, priority):
                return engine_id
        return None

    def _best(self, engine_ids: Iterator[str], priority: int) -> str | None:
        """The least loaded of those where the request runs at once, else of all."""
        return min(
            engine_ids,
            key=lambda one: (not self._runs_at_once(one, priority), self._load(one)),
            default=None,
        )

    def _runs_at_once(self, engine_id: str, priority: int) -> bool:
        is_seat_free = self._requests.num_on(engine_id) < self._seats[engine_id].num_seats
        return is_seat_free or self._is_outranked(engine_id, priority)

    def _count_engines(self) -> None:
        self._engine_ids = list(self._seats)
        self._num_seats = sum(seats.num_seats for seats in self._seats.values())

    def _load(self, engine_id: str) -> float:
        """Service units to come per seat, so that engines of unlike size compare."""
        return self._requests.load(engine_id) / self._seats[engine_id].num_seats

    def _has_room(self, engine_id: str, request: TrackedRequest) -> bool:
        seats, num_live = self._seats[engine_id], self._requests.num_on(engine_id)
        if num_live == 0:
            return True
        if num_live >= seats.num_places:
            return False
        if self._requests.most_tokens(engine_id) + request.most_tokens <= seats.num_tokens:
            return True
        together = [*self._requests.on_engine(engine_id), request]
        ahead = peak_tokens((each.output_left, each.tokens_held) for each in together)
        return ahead <= seats.num_tokens

    def _is_outranked(self, engine_id: str, priority: int) -> bool:
        seats = self._seats[engine_id]
        if seats.worst_running is None or seats.worst_running <= priority:
            return False
        return seats.has_turn_for(priority)
