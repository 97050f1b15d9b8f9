"""Those who wait are admitted in vLLM's own order, also when their ranks have changed."""

import heapq

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from vllm import SamplingParams
from vllm.v1.core.sched.request_queue import PriorityRequestQueue
from vllm.v1.request import Request

from scheduler.vllm_waiting import RankedQueue

priorities = st.integers(-2, 2)


def request(number: int, priority: int) -> Request:
    """Some arrive at the same time."""
    return Request(
        f"r{number}",
        prompt_token_ids=[1],
        sampling_params=SamplingParams(),
        pooling_params=None,
        priority=priority,
        arrival_time=float(number // 2),
    )


class BesideVllmsQueue(RuleBasedStateMachine):
    """The same is done to vLLM's queue, whose heap is built anew where ranks change."""

    def __init__(self) -> None:
        super().__init__()
        self._ours, self._theirs = RankedQueue(), PriorityRequestQueue()
        self._num_made = 0
        self._gone: list[Request] = []

    @rule(priority=priorities)
    def add(self, priority: int) -> None:
        self._num_made += 1
        one = request(self._num_made, priority)
        self._ours.add_request(one)
        self._theirs.add_request(one)

    @rule(data=st.data(), priority=priorities)
    def rank_anew(self, data: st.DataObject, priority: int) -> None:
        if self._theirs:
            one = data.draw(st.sampled_from(list(self._theirs)))
            one.priority = priority
            self._ours.rank_anew([one, request(0, priority)])
            heapq.heapify(self._theirs._heap)

    @rule()
    def pop(self) -> None:
        if self._theirs:
            one = self._theirs.pop_request()
            assert self._ours.pop_request() is one
            self._gone.append(one)

    @rule()
    def put_back(self) -> None:
        self._ours.prepend_requests(self._gone)
        self._theirs.prepend_requests(self._gone)
        self._gone.clear()

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if self._theirs:
            one = data.draw(st.sampled_from(list(self._theirs)))
            self._ours.remove_request(one)
            self._theirs.remove_request(one)

    @rule(data=st.data())
    def remove_some(self, data: st.DataObject) -> None:
        some = data.draw(st.sets(st.sampled_from([*self._theirs, request(0, 0)])))
        self._ours.remove_requests(some)
        self._theirs.remove_requests(some)

    @invariant()
    def both_say_the_same(self) -> None:
        in_order = list(self._theirs)
        assert list(self._ours) == list(self._ours.best_first()) == in_order
        assert (bool(self._ours), len(self._ours)) == (bool(self._theirs), len(self._theirs))
        if in_order:
            assert self._ours.peek_request() is in_order[0]
            assert self._ours.best_priority == in_order[0].priority


TestBesideVllmsQueue = BesideVllmsQueue.TestCase
TestBesideVllmsQueue.settings = settings(max_examples=60, deadline=None)


def test_ranks_that_change_for_ever_take_no_memory() -> None:
    """What is left of old ranks is cleared away, also while the first in line stays."""
    queue = RankedQueue()
    first, *others = [request(number, 0) for number in range(10)]
    first.priority = -1
    queue.prepend_requests([first, *others])
    for priority in range(1000):
        for one in others:
            one.priority = priority
        queue.rank_anew(others)

    assert len(queue._heap) < 100
    assert list(queue) == [first, *others]
