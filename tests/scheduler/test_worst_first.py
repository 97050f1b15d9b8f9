"""In which order engines are offered to a request that outranks somebody."""

from hypothesis import given
from hypothesis import strategies as st

from scheduler.worst_first import WorstFirst

ENGINES = st.sampled_from("abcd")
PUTS = st.tuples(ENGINES, st.integers(0, 3), st.floats(0, 3))
STEPS = st.lists(st.one_of(PUTS, st.tuples(ENGINES)))


def test_the_least_urgent_comes_first_and_of_equals_the_less_loaded() -> None:
    """Whatever was said of an engine before is forgotten."""
    engines = WorstFirst()
    for engine_id, worst, load in (("a", 1, 0.0), ("b", 9, 5.0), ("c", 9, 4.0), ("a", 9, 4.5)):
        engines.put(engine_id, worst, load)

    assert list(engines) == [("c", 9), ("a", 9), ("b", 9)]


@given(STEPS)
def test_it_is_as_if_all_were_sorted_anew(steps: list[tuple[str, int, float] | tuple[str]]) -> None:
    """Through any puts and drops, also of engines that are not there."""
    engines, model = WorstFirst(), {}
    for step in steps:
        if len(step) == 3:
            engine_id, worst, load = step
            engines.put(engine_id, worst, load)
            model[engine_id] = -worst, load, engine_id
        else:
            engines.drop(step[0])
            model.pop(step[0], None)

        assert list(engines) == [(each, -negated) for negated, _, each in sorted(model.values())]
