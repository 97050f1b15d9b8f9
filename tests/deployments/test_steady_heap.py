"""A replica's garbage collector does not walk what was loaded before the replica began."""

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


def test_what_lives_already_is_walked_no_more_and_what_comes_only_once_it_is_a_lot() -> None:
    """In a process of its own, since there is no way back for this one's heap."""
    program = """
import gc, weakref
from deployments.steady_heap import NEW_CONTAINERS, settle_heap

class Node: pass

lives, garbage = Node(), Node()
garbage.itself = garbage
watched = weakref.ref(garbage)
del garbage
settle_heap()
later = Node()
walked = {id(each) for each in gc.get_objects()}
print(watched(), id(lives) in walked, id(later) in walked, gc.isenabled())

def collections():
    return sum(one["collections"] for one in gc.get_stats())

before = collections()
made = [[] for _ in range(NEW_CONTAINERS // 2)]
print(collections() == before)
made += [[] for _ in range(NEW_CONTAINERS)]
print(collections() > before)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["None", "False", "True", "True", "True", "True"]
