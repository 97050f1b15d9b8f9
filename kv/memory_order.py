"""In which order other processes see what this one loads and stores in shared memory.

Owns the one barrier. x86 keeps loads among themselves in order, and stores among themselves, which
is all that ``kv.pool_index`` leans on; other processors do so only where they are told to.
"""

from threading import Lock


def keep_order() -> None:
    """Make what comes before, loads and stores, before all that comes after."""
    lock = Lock()
    lock.acquire()
    # Letting go of a lock waits for what came before it, taking one holds up what follows, and
    # no processor does the second before the first.
    lock.release()
    lock.acquire()
