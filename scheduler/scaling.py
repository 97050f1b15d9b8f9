"""How many engines a fleet should have: a decision on plain values, without a memory.

Owns the decision. What it is made on is ``scheduler.pressure``'s; when it has held for long enough
to be acted on is the autoscaler's that asks, and how an engine goes without loss its replica's.

More engines are wanted when requests wait longer for their first step than they should, or switch
more often: a fleet can also be kept from waiting by switching all the time. Fewer, only where
both are far from that and those that stay could seat all that is there. In between nothing
changes, so that a decision is not undone by what follows from it.
"""

from dataclasses import dataclass
from math import ceil

from scheduler.pressure import FleetPressure

MOST_GROWTH = 2.0  # times as many engines, at once: the first sign of a burst is its largest
CALM = 0.5  # below so much of the goal an engine may go
SEATED_SHARE = 0.75  # of their seats, that those which stay may have taken by what is there


@dataclass(frozen=True, slots=True)
class ScalingGoal:
    """What the number of engines is to keep to, and its bounds."""

    target_delay_s: float
    target_switches_per_s: float
    min_engines: int
    max_engines: int


def wanted_engines(num_engines: int, pressure: FleetPressure, goal: ScalingGoal) -> int:
    """How many engines there should be where there are ``num_engines``."""
    strain = max(
        pressure.delay_s / goal.target_delay_s,
        pressure.switches_per_s / goal.target_switches_per_s,
    )
    wanted = num_engines
    if strain > 1.0:
        wanted = ceil(num_engines * min(strain, MOST_GROWTH))
    elif strain < CALM and _could_do_with_one_less(num_engines, pressure.busy_share):
        wanted = num_engines - 1
    return min(max(wanted, goal.min_engines), goal.max_engines)


def _could_do_with_one_less(num_engines: int, busy_share: float) -> bool:
    return busy_share * num_engines <= SEATED_SHARE * (num_engines - 1)
