"""How a replica's process collects garbage.

Owns one decision: what is loaded when the replica has started is never looked at again. To find
cycles Python walks every container there is, and a hundred thousand of them are Ray's and
Serve's, which stay till the end: a pause of 70 ms (AMD EPYC, the router's process) where an
answer takes microseconds. What the replica makes later is a few containers of many plain values.
"""

import gc


def settle_heap() -> None:
    """Take everything that lives now, garbage aside, out of the collector's sight."""
    gc.collect()
    gc.freeze()
