"""The line of requests that wait for an engine."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from scheduler.line import WaitingLine
from scheduler.tracking import TrackedRequest

PRIORITIES = st.integers(-1, 3)


def make_request(request_id: str) -> TrackedRequest:
    return TrackedRequest(
        request_id=request_id,
        tenant="acme",
        conversation=None,
        engine_id=None,
        arrival_s=0.0,
        prompt_tokens=10,
        max_output_tokens=10,
    )


class AnyLine(RuleBasedStateMachine):
    """A line beside a plain list of ``(priority, turn, name)``."""

    def __init__(self) -> None:
        super().__init__()
        self.line = WaitingLine()
        self.model: dict[str, tuple[int, int]] = {}
        self.turns = 0

    @rule(priority=PRIORITIES)
    def one_comes(self, priority: int) -> None:
        name = f"r{self.turns}"
        self.line.add(make_request(name), priority)
        self.model[name] = priority, self.turns
        self.turns += 1

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def one_goes(self, data: st.DataObject) -> None:
        name = data.draw(st.sampled_from(sorted(self.model)))
        self.line.remove(name)
        del self.model[name]

    @rule(data=st.data())
    def all_are_ranked_anew(self, data: st.DataObject) -> None:
        names = [request.request_id for request in self.line.requests]
        size = len(names)
        priorities = data.draw(st.lists(PRIORITIES, min_size=size, max_size=size))
        self.line.reorder(priorities)
        for name, priority in zip(names, priorities, strict=True):
            self.model[name] = priority, self.model[name][1]

    @invariant()
    def the_first_is_the_most_urgent_and_among_equals_the_earliest(self) -> None:
        first = next(self.line.in_order(), None)
        assert len(self.line) == len(self.model)
        if first is None:
            assert not self.model
        else:
            expected = min(self.model, key=lambda name: self.model[name])
            assert (first[0].request_id, first[1]) == (expected, self.model[expected][0])
            assert expected in self.line

    @invariant()
    def all_come_in_turn(self) -> None:
        names = [request.request_id for request, _ in self.line.in_order()]
        assert names == sorted(self.model, key=lambda name: self.model[name])


TestAnyLine = AnyLine.TestCase
TestAnyLine.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
