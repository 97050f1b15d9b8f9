"""What the connector is told: the size of host memory, and the parts it is to do without."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from kv.errors import ConnectorSettingError
from kv.transfer_config import COPY_AHEAD, GROUPS, HOST_KV_GIB, PARTS, REUSE, THREADS, WITHOUT


@dataclass(frozen=True, slots=True)
class SwapSettings:
    """The connector's settings; without all parts it swaps block by block while all wait."""

    host_kv_gib: float
    groups: bool = True
    threads: bool = True
    reuse: bool = True
    copy_ahead: bool = True

    @classmethod
    def read(cls, extra_config: Mapping[str, Any]) -> "SwapSettings":
        """From vLLM's ``kv_connector_extra_config``.

        Raises:
            ConnectorSettingError: a setting is missing, unknown or of the wrong kind.
        """
        known = (HOST_KV_GIB, WITHOUT)
        for name in sorted(extra_config.keys() - {*known}):
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
        )
