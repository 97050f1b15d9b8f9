"""What the connector is told, and what it refuses to be told."""

from typing import Any

import pytest

from kv.errors import ConnectorSettingError
from kv.settings import SwapSettings


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        ({}, "'host_kv_gib': None is no positive number of GiB"),
        ({"host_kv_gib": "4"}, "'4' is no positive number"),
        ({"host_kv_gib": True}, "True is no positive number"),
        ({"host_kv_gib": 0}, "0 is no positive number"),
        ({"host_kv_gib": -1}, "-1 is no positive number"),
        ({"host_kv_gib": float("nan")}, "nan is no positive number"),
        ({"host_kv_gib": float("inf")}, "inf is no positive number"),
        ({"host_kv_gib": 1, "host_gib": 1}, "'host_gib': unknown; only host_kv_gib and without"),
        ({"host_kv_gib": 1, "without": "reuse"}, "'without': 'reuse' is no list of"),
        ({"host_kv_gib": 1, "without": ["speed"]}, r"'without': \['speed'\] is no list of"),
        ({"host_kv_gib": 1, "without": [["reuse"]]}, "'without': .* is no list of"),
    ],
    ids=[
        "missing",
        "text",
        "flag",
        "zero",
        "negative",
        "nan",
        "infinite",
        "unknown",
        "part alone",
        "unknown part",
        "no part",
    ],
)
def test_settings_that_are_not_understood_are_refused(extra: dict[str, Any], message: str) -> None:
    """A wrong setting is named, with what it should have been."""
    with pytest.raises(ConnectorSettingError, match=message):
        SwapSettings.read(extra)


def test_all_parts_are_on_unless_left_out() -> None:
    """The size alone is enough, and each part can be left out."""
    assert SwapSettings.read({"host_kv_gib": 1.5}) == SwapSettings(1.5)
    assert SwapSettings.read({"host_kv_gib": 1, "without": ["groups", "threads"]}) == SwapSettings(
        1, groups=False, threads=False
    )
    assert SwapSettings.read({"host_kv_gib": 1, "without": ["copy_ahead"]}) == SwapSettings(
        1, copy_ahead=False
    )


def test_nothing_is_sent_ahead_without_reuse() -> None:
    """Copies that one swap uses up are not worth making early: without reuse, no copy-ahead."""
    settings = SwapSettings.read({"host_kv_gib": 1, "without": ["reuse"]})

    assert settings == SwapSettings(1, reuse=False, copy_ahead=False)
