"""Turns that end with a tool call: for how long which engine keeps their KV on the device.

Owns the last turn of each conversation, which tools it waits for, and the pins that engines have
not been told of yet. How long a pin lasts is ``scheduler.tool_waits``; an engine holds its part
in ``scheduler.pins``. All of it is soft: what is lost is a pin.
"""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

from scheduler.tool_waits import NEVER_S, DeviceMemory, ToolWaits

MAX_TURNS = 20_000  # remembered; only those that run now or wait for a tool matter
MAX_TOOL_CHARS = 200  # of the tools' names, which clients make up

_Key = tuple[str, str]  # tenant and conversation


@dataclass(slots=True)
class Turn:
    """The newest request of a conversation, and the tools that it called at its end, if any."""

    request_id: str
    engine_id: str
    tools: str = ""
    called_s: float = 0.0
    is_pinned: bool = False


class ToolTurns:
    """Last turns by conversation, and the pins to come of them by engine.

    A conversation belongs to its tenant, and so do the tools: what one tenant's take says
    nothing of another's that have the same name. Who has waited for tools for longer than any pin
    lasts waits for ever as far as pins go: that is learned then, and the turn is forgotten.
    """

    def __init__(self, *, max_ttl_s: float, max_turns: int = MAX_TURNS) -> None:
        self._max_ttl_s = max_ttl_s
        self._max_turns = max_turns
        self._waits = ToolWaits()
        self._turns: OrderedDict[_Key, Turn] = OrderedDict()
        self._waiting: OrderedDict[_Key, Turn] = (
            OrderedDict()
        )  # for tools; called longest ago first
        self._pins_s: dict[str, dict[str, float]] = {}  # by engine, then request

    def set_longest_pin(self, max_ttl_s: float) -> None:
        """No pin lasts longer from now on; those there are stay as they were told."""
        self._max_ttl_s = max_ttl_s

    def come_back(self, tenant: str, conversation: str | None, now_s: float) -> None:
        """A request has come; if its conversation waited for a tool, that one is done.

        The pin is made to last while the request waits for a place.
        """
        if conversation is not None:
            turn = self._waiting.pop((tenant, conversation), None)
            if turn is not None:
                self._waits.observe((tenant, turn.tools), now_s - turn.called_s)
                if turn.is_pinned:
                    self._pin(turn, self._max_ttl_s)
        self._give_up(now_s)

    def begin(self, tenant: str, conversation: str | None, request_id: str, engine_id: str) -> None:
        """A request has got its place; elsewhere a pin of its conversation is of no use now."""
        if conversation is None or not self._max_ttl_s:
            return
        key = tenant, conversation
        before = self._turns.pop(key, None)
        self._waiting.pop(key, None)
        self._turns[key] = Turn(request_id, engine_id)
        if before is not None and before.is_pinned and before.engine_id != engine_id:
            self._pin(before, 0.0)
        if len(self._turns) > self._max_turns:
            oldest, _ = self._turns.popitem(last=False)
            self._waiting.pop(oldest, None)

    def engine(self, tenant: str, conversation: str) -> str | None:
        """Where the conversation's newest turn was placed, if it is remembered."""
        turn = self._turns.get((tenant, conversation))
        return turn.engine_id if turn else None

    def call(
        self,
        tenant: str,
        conversation: str,
        tools: Iterable[str],
        memory: DeviceMemory,
        now_s: float,
    ) -> None:
        """A conversation's newest turn has ended with calls of these tools."""
        self._give_up(now_s)
        key = tenant, conversation
        turn = self._turns.get(key)
        if turn is None:
            return
        turn.tools = "+".join(sorted(set(tools)))[:MAX_TOOL_CHARS]
        turn.called_s = now_s
        self._waiting[key] = turn
        self._waiting.move_to_end(key)
        ttl_s = self._waits.ttl_s((tenant, turn.tools), memory, at_most_s=self._max_ttl_s)
        turn.is_pinned = ttl_s > 0
        if turn.is_pinned:
            self._pin(turn, ttl_s)

    def take_pins(self, engine_id: str) -> dict[str, float] | None:
        """Seconds to pin by request, 0 to end a pin, each told once; None if none ever are."""
        if not self._max_ttl_s:
            return None
        pins_s, self._pins_s[engine_id] = self._pins_s.get(engine_id, {}), {}
        return pins_s

    def forget_engine(self, engine_id: str) -> None:
        """The engine has gone, and all pins with it."""
        self._pins_s.pop(engine_id, None)

    def _give_up(self, now_s: float) -> None:
        """Learn from the turns whose tools no pin can wait for any more, and forget them."""
        while self._waiting:
            key, turn = next(iter(self._waiting.items()))
            if now_s - turn.called_s <= self._max_ttl_s:
                return
            self._waits.observe((key[0], turn.tools), NEVER_S)
            del self._waiting[key], self._turns[key]

    def _pin(self, turn: Turn, ttl_s: float) -> None:
        # An engine that does not ask for its pins is gone or has not joined yet.
        if turn.engine_id in self._pins_s:
            self._pins_s[turn.engine_id][turn.request_id] = ttl_s
