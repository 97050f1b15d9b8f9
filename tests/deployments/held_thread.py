"""Holds the main thread of another process while its other threads go on: a loop that hangs.

A debugger's means (ptrace), in a process of its own, since whoever attaches is also told how the
other one fares, and the test's event loop waits for that itself.
"""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

_SEIZE, _INTERRUPT, _DETACH, _ANY_CHILD = 0x4206, 0x4207, 17, 0x40000000

_HOLD = f"""
import ctypes, os, sys
pid = int(sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
libc.ptrace.argtypes = [ctypes.c_long] * 4
def trace(what):
    if libc.ptrace(what, pid, 0, 0):
        sys.exit(os.strerror(ctypes.get_errno()))
trace({_SEIZE})
trace({_INTERRUPT})
os.waitpid(pid, {_ANY_CHILD})
print("held", flush=True)
sys.stdin.read()
trace({_DETACH})
"""


@contextmanager
def main_thread_held(pid: int) -> Iterator[None]:
    """Skips the test where the system forbids it."""
    with subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(pid)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout
        assert holder.stderr
        if holder.stdout.readline() != "held\n":
            pytest.skip(f"a thread cannot be held here: {holder.stderr.read().strip()}")
        try:
            yield
        finally:
            holder.communicate()
