"""A lane: spans of one sequence that follow each other.

Owns that they meet without gap or overlap and never run backwards, whatever times it is told;
what they stand for is its caller's affair.
"""

from collections.abc import Mapping

from opentelemetry.context import Context
from opentelemetry.trace import Span, Tracer

from ops.tracing.clocks import WallClock


class Lane:
    """At most one span is open. Times are of our own monotonic clock."""

    __slots__ = ("_parent", "_since_s", "_span", "_tracer", "_wall")

    def __init__(self, tracer: Tracer, parent: Context, wall: WallClock, begin_s: float) -> None:
        self._tracer, self._parent, self._wall = tracer, parent, wall
        self._since_s = begin_s
        self._span: Span | None = None

    def enter(
        self, name: str, at_s: float, attributes: Mapping[str, str | int] | None = None
    ) -> None:
        """Close the open span and open the next at the same moment."""
        self.close(at_s)
        self._span = self._tracer.start_span(
            name, self._parent, attributes=attributes, start_time=self._wall.at(self._since_s)
        )

    def note(self, name: str, at_s: float) -> None:
        """Something happened in the open span; without one it is not kept."""
        if self._span is not None:
            self._span.add_event(name, timestamp=self._wall.at(max(at_s, self._since_s)))

    def close(self, at_s: float) -> None:
        """Close the open span, if one is open."""
        self._since_s = max(at_s, self._since_s)
        if self._span is not None:
            self._span.end(self._wall.at(self._since_s))
            self._span = None
