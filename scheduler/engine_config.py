"""What an engine's scheduler is told when it starts, as vLLM passes it on.

Owns both sides of it, the launcher's and the scheduler's; it loads no vLLM. vLLM's
``additional_config`` is where a platform or plugin finds settings of its own, each under a name.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from scheduler.errors import SchedulerSettingError

OUR_NAME = "fastswitch"
MAX_SWITCHES_PER_S = "max_switches_per_s"


def additional_config(*, max_switches_per_s: float | None) -> dict[str, Any]:
    """What vLLM's ``additional_config`` takes; without a bound there is none."""
    if max_switches_per_s is None:
        return {}
    return {OUR_NAME: {MAX_SWITCHES_PER_S: max_switches_per_s}}


@dataclass(frozen=True, slots=True)
class SchedulerSettings:
    """What an engine's scheduler is told."""

    max_switches_per_s: float = inf

    @classmethod
    def read(cls, additional: Any) -> "SchedulerSettings":
        """From vLLM's ``additional_config``.

        Raises:
            SchedulerSettingError: a setting is unknown or of the wrong kind.
        """
        ours = additional.get(OUR_NAME, {}) if isinstance(additional, Mapping) else {}
        if not isinstance(ours, Mapping):
            raise SchedulerSettingError(OUR_NAME, f"{ours!r} is no mapping of settings")
        for name in sorted(ours.keys() - {MAX_SWITCHES_PER_S}):
            raise SchedulerSettingError(name, f"unknown; only {MAX_SWITCHES_PER_S} is understood")
        if MAX_SWITCHES_PER_S not in ours:
            return cls()
        value = ours[MAX_SWITCHES_PER_S]
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < inf:
            raise SchedulerSettingError(
                MAX_SWITCHES_PER_S, f"{value!r} is no positive number of switches"
            )
        return cls(value)
