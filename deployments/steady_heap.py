"""How a replica's process collects garbage.

Owns two decisions. What is loaded when the replica has started is never looked at again: to find
cycles Python walks every container there is, and a hundred thousand of them are Ray's and
Serve's, which stay till the end: a pause of 70 ms (AMD EPYC, the router's process) where an
answer takes microseconds. And what the replica makes later is looked at only once there is a lot
of it: requests come and go without cycles, so that most of it is gone before.
"""

import gc

# More than the containers of the requests that are under way at once in one answer or report.
# With Python's own 700 a collection was in about half of the slowest hundredth of admissions.
NEW_CONTAINERS = 10_000


def settle_heap() -> None:
    """Take everything that lives now, garbage aside, out of the collector's sight."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_CONTAINERS)
