"""Pressure: how hard the fleet's engines are pressed, by what their number is decided.

Owns the measuring: how long those wait who wait to run at all, how often requests are switched to
make room for others, how many seats are taken. What follows from it is ``scheduler.scaling``'s.
"""

from collections.abc import Collection, Mapping

import msgspec

from scheduler.engines import JoinedEngine


class FleetPressure(msgspec.Struct, array_like=True, frozen=True):
    """The fleet at one moment, and what it did since the one before."""

    delay_s: float = 0.0  # for which those have waited, on average, who have not run yet
    switches_per_s: float = 0.0  # per engine
    busy_share: float = 0.0  # live requests per seat; above 1 where some wait


class PressureGauge:
    """Makes rates of the engines' counts, which only grow."""

    def __init__(self) -> None:
        self._taken_s: float | None = None
        self._preemptions: dict[str, int] = {}

    def take(
        self,
        waits_s: Collection[float],
        num_live: int,
        engines: Mapping[str, JoinedEngine],
        now_s: float,
    ) -> FleetPressure:
        """The pressure now; ``waits_s`` are those of the requests that have not run yet."""
        num_seats = sum(
            engine.capacity.max_num_seqs for engine in engines.values() if not engine.is_draining
        )
        return FleetPressure(
            delay_s=sum(waits_s) / len(waits_s) if waits_s else 0.0,
            switches_per_s=self._switches_per_s(engines, now_s),
            busy_share=num_live / num_seats if num_seats else float(num_live > 0),
        )

    def _switches_per_s(self, engines: Mapping[str, JoinedEngine], now_s: float) -> float:
        counts = {name: engine.latest.switches.preemptions for name, engine in engines.items()}
        before, self._preemptions = self._preemptions, counts
        taken_s, self._taken_s = self._taken_s, now_s
        if taken_s is None or now_s <= taken_s:
            return 0.0
        # Of an engine that is new, or has begun anew, it is not known since when.
        grown = sum(max(0, count - before.get(name, count)) for name, count in counts.items())
        return grown / (now_s - taken_s) / max(1, len(counts))
