"""What the connector is told: host memory's size and place, and the parts it is to do without."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any

from kv.errors import ConnectorSettingError
from kv.transfer_config import (
    COPY_AHEAD,
    FOLDER,
    GROUPS,
    HOST_KV_GIB,
    LIFE,
    PARTS,
    POOL,
    REFUSED_POOLS,
    REUSE,
    THREADS,
    WITHOUT,
)


@dataclass(frozen=True, slots=True)
class PoolPlace:
    """Where host memory lies that may outlive the engine, and which of its lives this is."""

    folder: Path
    life: int


@dataclass(frozen=True, slots=True)
class SwapSettings:
    """The connector's settings; without all parts it swaps block by block while all wait.

    Without a ``pool`` host memory is the engine's own and ends with it; ``refused_pools`` were of
    no use.
    """

    host_kv_gib: float
    groups: bool = True
    threads: bool = True
    reuse: bool = True
    copy_ahead: bool = True
    pool: PoolPlace | None = None
    refused_pools: int = 0

    @classmethod
    def read(cls, extra_config: Mapping[str, Any]) -> "SwapSettings":
        """From vLLM's ``kv_connector_extra_config``.

        Raises:
            ConnectorSettingError: a setting is missing, unknown or of the wrong kind.
        """
        known = (HOST_KV_GIB, WITHOUT)
        # What the launcher adds is not for users to set, so not offered.
        for name in sorted(extra_config.keys() - {*known, POOL, REFUSED_POOLS}):
            raise ConnectorSettingError(name, f"unknown; only {' and '.join(known)} are understood")
        value = extra_config.get(HOST_KV_GIB)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < inf:
            raise ConnectorSettingError(HOST_KV_GIB, f"{value!r} is no positive number of GiB")
        without = extra_config.get(WITHOUT, [])
        if not isinstance(without, list) or any(part not in [*PARTS] for part in without):
            raise ConnectorSettingError(WITHOUT, f"{without!r} is no list of {sorted(PARTS)}")
        return cls(
            value,
            groups=GROUPS not in without,
            threads=THREADS not in without,
            reuse=REUSE not in without,
            # What a swap uses up would be sent ahead for nothing.
            copy_ahead=COPY_AHEAD not in without and REUSE not in without,
            pool=_pool_place(extra_config.get(POOL)),
            refused_pools=extra_config.get(REFUSED_POOLS, 0),
        )


def _pool_place(value: Mapping[str, Any] | None) -> PoolPlace | None:
    if value is None:
        return None
    if not isinstance(value, dict) or value.keys() != {FOLDER, LIFE}:
        raise ConnectorSettingError(POOL, f"{value!r} has not just {FOLDER} and {LIFE}")
    return PoolPlace(Path(value[FOLDER]), value[LIFE])
