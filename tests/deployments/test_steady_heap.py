"""A replica's garbage collector does not walk what was loaded before the replica began."""

import subprocess
import sys
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]


def test_what_lives_already_is_walked_no_more_and_garbage_is_gone() -> None:
    """In a process of its own, since there is no way back for this one's heap."""
    program = """
import gc, weakref
from deployments.steady_heap import settle_heap

class Node: pass

lives, garbage = Node(), Node()
garbage.itself = garbage
watched = weakref.ref(garbage)
del garbage
settle_heap()
later = Node()
walked = {id(each) for each in gc.get_objects()}
print(watched(), id(lives) in walked, id(later) in walked, gc.isenabled())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=CHECKOUT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["None", "False", "True", "True"]
