"""A replica's garbage is collected when nobody waits, and before it fills the memory."""

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
PRELUDE = """
import gc, weakref
from deployments.steady_heap import GROWN_BYTES, NEW_CONTAINERS, GarbageWatch, settle_heap

class Node: pass

def garbage():
    node = Node()
    node.itself = node
    return weakref.ref(node)

"""


def run(program: str) -> list[str]:
    """What it prints; in a process of its own, since there is no way back for this one's heap."""
    done = subprocess.run(
        [sys.executable, "-c", PRELUDE + program],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.split()


def test_what_lives_already_is_walked_no_more_and_nothing_is_by_itself() -> None:
    """Garbage goes once more before; what comes later waits to be looked at."""
    program = """
lives, watched = Node(), garbage()
settle_heap()
later = Node()
walked = {id(each) for each in gc.get_objects()}
print(watched(), id(lives) in walked, id(later) in walked)
watched = garbage()
made = [[] for _ in range(10 * NEW_CONTAINERS)]
print(watched() is None)
"""
    assert run(program) == ["None", "False", "True", "False"]


def test_garbage_goes_when_nobody_waits_and_there_may_be_enough_of_it() -> None:
    """Not while a request is under way, and not for a few containers."""
    program = """
settle_heap()
is_idle = True
watch = GarbageWatch(lambda: is_idle, lambda: 0)
watched = garbage()
watch.look()
print(watched() is None)
made = [[] for _ in range(NEW_CONTAINERS)]
is_idle = False
watch.look()
print(watched() is None)
is_idle = True
watch.look()
print(watched() is None)
"""
    assert run(program) == ["False", "False", "True"]


def test_garbage_goes_before_it_fills_the_memory() -> None:
    """Whoever waits: counted from what was left by the last collection."""
    program = """
settle_heap()
resident = 1_000
watch = GarbageWatch(lambda: False, lambda: resident)
for grown in (GROWN_BYTES - 1, GROWN_BYTES, GROWN_BYTES, 2 * GROWN_BYTES):
    watched, resident = garbage(), 1_000 + grown
    watch.look()
    print(watched() is None)
"""
    assert run(program) == ["False", "True", "False", "True"]
