"""Which engine a request goes to.

Owns the choice between engines, what a request is expected to weigh on one, and where each
conversation was served last. Loads are passed in: service units still to be processed, per
seat of the engine, so that engines of unlike size compare.

The choice is the least loaded engine of all rather than of two drawn at random: two choices
guard a crowd of routers with stale views against rushing to the same engine, and here one
router counts every placement at once. A conversation goes back to the engine that holds its
KV unless that one is well above the others.
"""

from collections import OrderedDict
from collections.abc import Mapping
from random import Random

AFFINITY_BOUND = 1.25  # of the mean load: how much busier than others a warm engine may be


def choose_engine(
    loads: Mapping[str, float], *, warm: str | None, request_load: float, random: Random
) -> str:
    """The engine for a request; ``loads`` names at least one.

    ``warm`` is the engine that served the conversation last. It is taken while its load is at
    most ``AFFINITY_BOUND`` times the mean plus ``request_load``, the load of one such request:
    else an idle fleet would be too busy for any affinity.
    """
    if warm is not None and warm in loads:
        mean = sum(loads.values()) / len(loads)
        if loads[warm] <= AFFINITY_BOUND * mean + request_load:
            return warm
    least = min(loads.values())
    return random.choice([engine_id for engine_id, load in loads.items() if load == least])


class OutputLengths:
    """How many tokens a request is expected to put out.

    A moving mean over the finished ones, taken as the expectation at any point of a request:
    lengths are near enough to memoryless that having come far says little about the rest.
    """

    def __init__(self, *, initial: float = 256.0, window: int = 64) -> None:
        self._mean = initial
        self._window = window

    def observe(self, output_tokens: int) -> None:
        self._mean += (output_tokens - self._mean) / self._window

    def expected_left(self, done: int, limit: int | None) -> float:
        """Tokens to come from a request that has put out ``done`` of at most ``limit``."""
        return self._mean if limit is None else min(self._mean, max(0, limit - done))


class ConversationMemory:
    """The engine that served each conversation last; those not heard of longest are dropped.

    A conversation belongs to its tenant: two tenants that use the same name have two.
    """

    def __init__(self, *, max_conversations: int) -> None:
        self._max_conversations = max_conversations
        self._engines: OrderedDict[tuple[str, str], str] = OrderedDict()

    def __len__(self) -> int:
        return len(self._engines)

    def engine(self, tenant: str, conversation: str | None) -> str | None:
        """Where the conversation was served last, if it has a name and is remembered."""
        return None if conversation is None else self._engines.get((tenant, conversation))

    def remember(self, tenant: str, conversation: str | None, engine_id: str) -> None:
        if conversation is None:
            return
        self._engines[tenant, conversation] = engine_id
        self._engines.move_to_end((tenant, conversation))
        if len(self._engines) > self._max_conversations:
            self._engines.popitem(last=False)
