"""When an engine's pool of host memory comes and goes."""

import os
from pathlib import Path
from typing import Any

import pytest

from deployments.engine_order import EngineOrder
from deployments.engine_pool import engine_pool
from kv.node_pools import application_folder, life_of
from kv.settings import SwapSettings
from kv.transfer_config import transfer_config


@pytest.fixture
def pools(tmp_path: Path) -> Path:
    return application_folder(life_of(os.getpid()), "app", tmp_path)


def order(pools: Path | str, **engine_args: Any) -> EngineOrder:
    arguments = {"model": "m", "kv_transfer_config": transfer_config(1.0), **engine_args}
    return EngineOrder("engine-a", "127.0.0.1", arguments, pools_folder=str(pools))


def settings_in(engine_args: Any) -> SwapSettings:
    return SwapSettings.read(engine_args["kv_transfer_config"]["kv_connector_extra_config"])


def test_an_engine_that_is_asked_to_end_takes_its_pool_along(pools: Path) -> None:
    """While it runs the pool is there; vLLM's loop ends with SystemExit."""

    def run_until_asked() -> None:
        with engine_pool(order(pools)) as arguments:
            place = settings_in(arguments).pool
            assert place is not None
            assert list(pools.iterdir()) == [place.folder]
            raise SystemExit

    with pytest.raises(SystemExit):
        run_until_asked()

    assert list(pools.iterdir()) == []


def test_an_engine_that_fails_leaves_its_pool(pools: Path) -> None:
    """For the one that Serve starts next."""
    with pytest.raises(RuntimeError), engine_pool(order(pools)):
        raise RuntimeError

    assert len(list(pools.iterdir())) == 1


def test_each_start_is_a_life_of_its_own(pools: Path) -> None:
    """Engines at the same time have different pools, and none has another's life."""
    with engine_pool(order(pools)) as one, engine_pool(order(pools)) as other:
        first, second = settings_in(one).pool, settings_in(other).pool

    assert first is not None
    assert second is not None
    assert first.folder != second.folder
    assert first.life != second.life


def test_without_a_folder_or_host_memory_nothing_is_changed(pools: Path) -> None:
    """Then host memory is the engine's own, or there is none."""
    for each in (order(""), order(pools, kv_transfer_config=None)):
        with engine_pool(each) as arguments:
            assert arguments == each.engine_args
    assert not pools.exists()


def test_an_engine_starts_where_shared_memory_cannot_be_used(
    pools: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With host memory of its own; it is said once, and counted."""
    pools.parents[1].mkdir()
    pools.parents[1].chmod(0o777)

    with engine_pool(order(pools)) as arguments:
        settings = settings_in(arguments)

    assert (settings.pool, settings.refused_pools) == (None, 1)
    [record] = caplog.records
    assert record.message.startswith("KV in host memory will end with this engine: ")
    assert "others than this user can get at it" in record.message
