"""Which engine had a conversation, or a prompt's beginning, last.

Owns two bounded memories of where requests went, and looks into no engine: that engine mostly has
the KV still. Where it has dropped it the request is computed there as anywhere; one that has left
the fleet is cold to ``seating``, and its name goes as the memory fills.
"""

from collections import OrderedDict
from collections.abc import Hashable, Sequence

from scheduler.tracking import TrackedRequest


class Warmth:
    """The engine that each conversation and each prefix went to last.

    A conversation belongs to its tenant: two tenants that use the same name have two. Prefixes
    come as fingerprints in which the tenant is mixed already.
    """

    def __init__(self, *, max_conversations: int, max_prefixes: int) -> None:
        self._conversations = _Latest(max_conversations)
        self._prefixes = _Latest(max_prefixes)

    def engine(self, request: TrackedRequest, prefixes: Sequence[int]) -> str | None:
        """Where the request's conversation went, else where the longest known prefix did."""
        if request.conversation is not None:
            engine_id = self._conversations.get((request.tenant, request.conversation))
            if engine_id is not None:
                return engine_id
        known = (self._prefixes.get(prefix) for prefix in reversed(prefixes))
        return next((engine_id for engine_id in known if engine_id is not None), None)

    def remember(self, request: TrackedRequest, prefixes: Sequence[int] = ()) -> None:
        """The request is on its engine now, and soon its KV as well."""
        if request.engine_id is None:
            return
        if request.conversation is not None:
            self._conversations.put((request.tenant, request.conversation), request.engine_id)
        for prefix in prefixes:
            self._prefixes.put(prefix, request.engine_id)


class _Latest:
    """The engine noted last for each key; keys not noted for longest are dropped."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._engines: OrderedDict[Hashable, str] = OrderedDict()

    def get(self, key: Hashable) -> str | None:
        return self._engines.get(key)

    def put(self, key: Hashable, engine_id: str) -> None:
        self._engines[key] = engine_id
        self._engines.move_to_end(key)
        if len(self._engines) > self._most:
            self._engines.popitem(last=False)
