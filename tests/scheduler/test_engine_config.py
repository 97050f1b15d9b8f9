"""What an engine's scheduler is told, and what it refuses to be told."""

from math import inf
from typing import Any

import pytest

from scheduler.engine_config import SchedulerSettings, additional_config
from scheduler.errors import SchedulerSettingError


@pytest.mark.parametrize(
    ("ours", "message"),
    [
        ({"max_switches_per_s": 0}, "'max_switches_per_s': 0 is no positive number"),
        ({"max_switches_per_s": -1.5}, "-1.5 is no positive number"),
        ({"max_switches_per_s": True}, "True is no positive number"),
        ({"max_switches_per_s": "100"}, "'100' is no positive number"),
        ({"max_switches_per_s": None}, "None is no positive number"),
        ({"max_switches_per_s": inf}, "inf is no positive number"),
        ({"max_switches_per_s": float("nan")}, "nan is no positive number"),
        ({"switches": 1}, "'switches': unknown; only max_switches_per_s is understood"),
        (100, "'fastswitch': 100 is no mapping"),
    ],
)
def test_settings_that_are_not_understood_are_refused(ours: Any, message: str) -> None:
    """A wrong setting is named, with what it should have been."""
    with pytest.raises(SchedulerSettingError, match=message):
        SchedulerSettings.read({"fastswitch": ours})


@pytest.mark.parametrize("bound", [0.5, 100, None])
def test_what_is_given_is_what_is_read(bound: float | None) -> None:
    """Launcher and scheduler agree; nothing given is no bound."""
    told = additional_config(max_switches_per_s=bound)
    assert SchedulerSettings.read(told).max_switches_per_s == (inf if bound is None else bound)


def test_what_others_are_told_is_left_alone() -> None:
    """Platforms and plugins have their settings in the same place."""
    assert SchedulerSettings.read({"other": {"max": 1}}) == SchedulerSettings()
