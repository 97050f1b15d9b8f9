"""The load of `bench router`: who sends what, and engines that run and report it."""

from collections import Counter
from itertools import islice

import pytest

from deployments.messages import Admit, Report, request_decoder
from ops.bench.router_load import PREFILL_TOKENS, STEPS_PER_ROUND, Arrivals, StandInEngine, Turn
from scheduler.admission import AdmitRequest
from scheduler.reports import EngineProgress, LiveRequest

TENANTS = ("quiet", "loud")


def make_turn(name: str, *, prompt_tokens: int = 8, output_tokens: int = 8) -> Turn:
    """A turn of the quiet tenant; those with later names have come later."""
    request = AdmitRequest(
        request_id=name,
        tenant="quiet",
        conversation=None,
        prompt_tokens=prompt_tokens,
        max_output_tokens=output_tokens,
        arrival_s=float(ord(name)),
    )
    return Turn(request, output_tokens)


def reported(engine: StandInEngine, *, is_full: bool = False) -> EngineProgress:
    """What the router reads in the engine's next report."""
    message = request_decoder.decode(engine.report(is_full=is_full))
    assert isinstance(message, Report)
    assert message.engine_id == engine.engine_id
    return message.progress


def running(progress: EngineProgress) -> set[str]:
    return {one.request_id for one in progress.live if one.is_running}


def test_the_same_seed_sends_the_same_requests() -> None:
    """Two routers of one run, or of two, are asked the same."""
    one, other = (Arrivals("seed", 10) for _ in range(2))
    assert [one.next() for _ in range(50)] == [other.next() for _ in range(50)]


def test_few_tenants_send_much_and_each_sends_something() -> None:
    """The first tenant sends about as much as 1/r promises; in turn all send alike."""
    arrivals = Arrivals("seed", 10)

    sent = Counter(arrivals.next().request.tenant for _ in range(2000))
    assert sent.keys() == set(arrivals.tenants)
    assert sent["tenant-0000"] / sent["tenant-0009"] == pytest.approx(10, rel=0.5)

    in_turn = Counter(turn.request.tenant for turn in islice(arrivals.one_each(), 20))
    assert set(in_turn.values()) == {2}


def test_a_conversation_goes_on_once_its_turn_has_ended() -> None:
    """The next turn has the last one's history, and no turn is followed twice."""
    arrivals = Arrivals("seed", 3)
    first = arrivals.next().request
    arrivals.ended(first)

    later = [arrivals.next().request for _ in range(50)]

    [follow_up] = [one for one in later if one.conversation == first.conversation]
    assert follow_up.tenant == first.tenant
    assert follow_up.prompt_tokens > first.prompt_tokens
    assert follow_up.prefixes[: len(first.prefixes)] == first.prefixes


def test_an_admission_is_read_as_it_was_sent() -> None:
    """Turns cross in the gateways' own encoding."""
    turn = Arrivals("seed", 1).next()
    assert request_decoder.decode(turn.message) == Admit(turn.request)


def test_the_most_urgent_requests_run_and_new_priorities_displace_them() -> None:
    """As many as there are seats; among equals those that came first."""
    engine = StandInEngine("engine", TENANTS, max_num_seqs=2)
    for name, priority in (("a", 1), ("b", 1), ("c", 0)):
        engine.take(make_turn(name), priority)

    engine.run()
    assert running(reported(engine)) == {"a", "c"}

    engine.obey({"a": 2})
    engine.run()
    assert running(reported(engine)) == {"b", "c"}


def test_a_request_computes_its_prompt_and_then_a_few_tokens_a_round() -> None:
    """Until it has put out what it is to put out; then it is reported as finished, once."""
    engine = StandInEngine("engine", TENANTS)
    turn = make_turn("a", prompt_tokens=PREFILL_TOKENS + 1, output_tokens=STEPS_PER_ROUND + 1)
    engine.take(turn, 0)

    done: list[tuple[int, int]] = []
    while not (ended := engine.run()):
        [live] = reported(engine).live
        done.append((live.prompt_done, live.output_done))

    prompt_tokens = turn.request.prompt_tokens
    assert done == [(PREFILL_TOKENS, 0), (prompt_tokens, 0), (prompt_tokens, STEPS_PER_ROUND)]
    assert ended == [turn]
    [finished] = reported(engine).finished
    assert (finished.prompt_done, finished.output_done) == (prompt_tokens, turn.output_tokens)
    assert reported(engine).finished == []


def test_only_requests_that_moved_are_reported_and_all_in_a_full_report() -> None:
    """A waiting request is told of once, a full report tells of it and of past service again."""
    engine = StandInEngine("engine", TENANTS, max_num_seqs=1)
    engine.take(make_turn("a"), 0)
    engine.take(make_turn("b"), 1)

    def names(live: list[LiveRequest]) -> list[str]:
        return [one.request_id for one in live]

    engine.run()
    assert names(reported(engine).live) == ["a", "b"]
    engine.run()
    assert names(reported(engine).live) == ["a"]
    full = reported(engine, is_full=True)
    assert names(full.live) == ["a", "b"]
    assert full.tenant_service.keys() == {*TENANTS}
    assert full.num_waiting == 1
