"""What the connector is told, and what it refuses to be told."""

from pathlib import Path
from typing import Any

import pytest

from kv.errors import ConnectorSettingError
from kv.settings import PoolPlace, SwapSettings
from kv.transfer_config import transfer_config, with_pool, without_pool


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
        ({"host_kv_gib": 1, "pool": {"folder": "/a"}}, "'pool': .* has not just folder and life"),
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
        "half a place",
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


def test_the_launcher_says_where_host_memory_may_outlive_the_engine() -> None:
    """Or that it cannot; the rest of the settings is as it was."""
    config = transfer_config(1.5)
    inside = with_pool(config, "/shm/pool", life=7, refused=2)["kv_connector_extra_config"]
    outside = without_pool(config)["kv_connector_extra_config"]

    place = PoolPlace(Path("/shm/pool"), 7)
    assert SwapSettings.read(inside) == SwapSettings(1.5, pool=place, refused_pools=2)
    assert SwapSettings.read(outside) == SwapSettings(1.5, refused_pools=1)


def test_nothing_is_sent_ahead_without_reuse() -> None:
    """Copies that one swap uses up are not worth making early: without reuse, no copy-ahead."""
    settings = SwapSettings.read({"host_kv_gib": 1, "without": ["reuse"]})

    assert settings == SwapSettings(1, reuse=False, copy_ahead=False)
