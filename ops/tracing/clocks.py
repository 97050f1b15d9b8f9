"""Clocks: whose second is whose.

Owns the way from another process's monotonic clock to our own, and from ours to the wall's. Spans
carry wall time; what lies between two moments is measured by a monotonic clock, so a wall clock
that is set while a request runs neither stretches the request nor turns it around.
"""

from dataclasses import dataclass

MAX_DRIFT = 500e-6  # seconds per second: as much as NTP slews a clock


@dataclass(frozen=True, slots=True)
class WallClock:
    """Our monotonic clock read ``origin_s`` when it was ``origin_ns`` since the epoch."""

    origin_s: float
    origin_ns: int

    def at(self, own_s: float) -> int:
        """Nanoseconds since the epoch."""
        return self.origin_ns + round((own_s - self.origin_s) * 1e9)


class EngineClock:
    """An engine's monotonic clock as seen from here, by the messages that state its time.

    A message is under way for some time, so each gives a bound on the difference of the clocks and
    the quickest one the best: the least-delay filter of NTP (RFC 5905), one way only, since no
    question is asked. The bound is relaxed by what clocks may have drifted apart since, so it
    follows them. Moments of the engine are never put too early, and too late by a message's way.
    """

    __slots__ = ("_ahead_s", "_heard_s")

    def __init__(self, engine_s: float, now_s: float) -> None:
        self._ahead_s = now_s - engine_s
        self._heard_s = now_s

    def hear(self, engine_s: float, now_s: float) -> None:
        """A message that states ``engine_s`` has come in."""
        relaxed_s = self._ahead_s + MAX_DRIFT * (now_s - self._heard_s)
        self._ahead_s = min(relaxed_s, now_s - engine_s)
        self._heard_s = now_s

    def to_own(self, engine_s: float) -> float:
        """When it was here what the engine calls ``engine_s``."""
        return engine_s + self._ahead_s
