"""Errors of the KV memory.

KVError
├── OutOfBlocksError       a pool has fewer free blocks than asked for
├── BlockNotTakenError     a block is given back that nobody has taken
├── HostMemorySizeError    the host memory asked for holds no block, or does not fit the machine
├── ConnectorSettingError  the connector's settings are not what it understands
├── SharedPoolError        host memory that outlives its engine cannot be had, or is not ours
├── KVLayoutError          the engine's KV tensors do not lie in memory as it says they do
└── RoundTripError         a block came back from host memory changed
"""


class KVError(Exception):
    """Base of everything that can go wrong where KV blocks live and move."""


class OutOfBlocksError(KVError):
    """A pool has fewer free blocks than the caller asked for."""

    def __init__(self, pool: str, needed: int, free: int) -> None:
        super().__init__(pool, needed, free)
        self.pool, self.needed, self.free = pool, needed, free

    def __str__(self) -> str:
        return f"{self.pool} pool: {self.needed} blocks needed, {self.free} free"


class BlockNotTakenError(KVError):
    """A block is given back to a pool that has it already, or never had it."""

    def __init__(self, pool: str, block: int) -> None:
        super().__init__(pool, block)
        self.pool, self.block = pool, block

    def __str__(self) -> str:
        return f"{self.pool} pool: block {self.block} is given back but is not taken"


class HostMemorySizeError(KVError):
    """The host memory asked for cannot hold a single block, or is more than the machine has."""

    def __init__(self, wanted_gib: float, problem: str) -> None:
        super().__init__(wanted_gib, problem)
        self.wanted_gib, self.problem = wanted_gib, problem

    def __str__(self) -> str:
        return f"host_kv_gib is {self.wanted_gib:g}: {self.problem}"


class ConnectorSettingError(KVError):
    """A setting in kv_connector_extra_config is missing, unknown or of the wrong kind."""

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(setting, problem)
        self.setting, self.problem = setting, problem

    def __str__(self) -> str:
        return f"kv_connector_extra_config, {self.setting!r}: {self.problem}"


class SharedPoolError(KVError):
    """A pool in shared memory cannot be made, or lies where it must not be trusted."""

    def __init__(self, place: str, problem: str) -> None:
        super().__init__(place, problem)
        self.place, self.problem = place, problem

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}"


class KVLayoutError(KVError):
    """The engine's description of where its KV lies does not match its tensors."""

    def __init__(self, layer: str, problem: str) -> None:
        super().__init__(layer, problem)
        self.layer, self.problem = layer, problem

    def __str__(self) -> str:
        return f"KV cache of {self.layer}: {self.problem}"


class RoundTripError(KVError):
    """A block's bytes are not the same after a trip to host memory and back."""

    def __init__(self, layer: str, block: int) -> None:
        super().__init__(layer, block)
        self.layer, self.block = layer, block

    def __str__(self) -> str:
        return (
            f"KV cache of {self.layer}: block {self.block} came back from host memory changed, so "
            "swapping would give wrong tokens; this engine version or attention backend lays its "
            "KV out in a way that is not understood"
        )
