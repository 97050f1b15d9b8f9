"""What this machine can compute on, found without importing torch."""

import ctypes
from contextlib import suppress


def has_cuda() -> bool:
    """Whether an NVIDIA driver with at least one GPU answers."""
    with suppress(OSError):
        driver = ctypes.CDLL("libcuda.so.1")
        count = ctypes.c_int(0)
        return (
            driver.cuInit(0) == 0
            and driver.cuDeviceGetCount(ctypes.byref(count)) == 0
            and (count.value > 0)
        )
    return False
