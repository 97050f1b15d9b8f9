"""Numbers that express an order and change only where the order does.

Owns which number each thing in an order has. Counted from the front, all would get other numbers
whenever the front goes, and each has to be sent to an engine and put in order there. Here numbers
lie far apart: whoever stands in order with the others keeps the one it has, and the rest get new
ones in the room between. The room is that of labels in order maintenance (Dietz and Sleator, STOC
1987); that as few as possible change is a longest rising subsequence (Fredman, 1975). Dietz and
Sleator also clear crowded places beforehand; here what crowds a place leaves it again soon.
"""

from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

END = 2**61  # numbers are below: engines take 64 bits with a sign, and `vtc` makes two of each
MIDDLE = END // 2  # to begin with
STRIDE = 2**32  # from one number to the next where nothing else bounds the room


def renumbered(before: Sequence[int], *, end: int = END, stride: int = STRIDE) -> list[int]:
    """Rising numbers, from 0 to ``end - 1``, for things that stand in this order.

    ``before`` is what number each had: they may fall, and repeat where things had one together.
    As many as can keep theirs: all, where they rise. But where that leaves too little room in
    front or behind, all begin anew. ``end`` has to be a stride for each at least.
    """
    kept = _kept(before)
    if not kept:
        return []
    numbers = _filled(before, kept, stride)
    if numbers[0] >= 0 and numbers[-1] < end:
        return numbers
    first = (end - stride * len(before)) // 2
    return [first + stride * place for place in range(len(before))]


def _kept(before: Sequence[int]) -> list[int]:
    """The places that keep their numbers: the most that leave room for all between them.

    By how much a number is above its place is its slack. Between two that are kept there is room
    where it does not fall. Chains of such are told by their last places and, of each place, the
    one before it in its chain.
    """
    slacks: list[int] = []  # the least that a chain of each length can end with
    lasts: list[int] = []  # the places of these
    links: list[int | None] = []
    for place, number in enumerate(before):
        slack = number - place
        if not slacks or slack >= slacks[-1]:
            links.append(lasts[-1] if lasts else None)
            slacks.append(slack)
            lasts.append(place)
        else:
            length = bisect_right(slacks, slack)
            links.append(lasts[length - 1] if length else None)
            slacks[length], lasts[length] = slack, place
    kept = []
    link = lasts[-1] if lasts else None
    while link is not None:
        kept.append(link)
        link = links[link]
    return kept[::-1]


def _filled(before: Sequence[int], kept: Sequence[int], stride: int) -> list[int]:
    """The numbers before, but for those not kept: these lie evenly around the others."""
    numbers = list(before)
    for place, next_place in pairwise(kept):
        number, steps = before[place], next_place - place
        for step in range(1, steps):
            numbers[place + step] = number + (before[next_place] - number) * step // steps
    first, last = kept[0], kept[-1]
    numbers[:first] = [before[first] - stride * step for step in range(first, 0, -1)]
    numbers[last:] = [before[last] + stride * step for step in range(len(before) - last)]
    return numbers
