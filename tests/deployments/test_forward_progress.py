"""What counts as an engine's getting on."""

from typing import Any

import pytest

from deployments.forward_progress import ForwardProgress
from scheduler.reports import EngineProgress, FinishedRequest, LiveRequest, SwitchCounts


def live(name: str, prompt_done: int, output_done: int = 0) -> LiveRequest:
    return LiveRequest(name, "acme", None, 0.0, 100, prompt_done, output_done, 0, is_running=True)


def report(*requests: LiveRequest, step: int = 1, **changes: Any) -> EngineProgress:
    facts: dict[str, Any] = {
        "is_full": False,
        "finished": [],
        "num_running": len(requests),
        "num_waiting": 0,
        "blocks_used": 0,
        "blocks_total": 100,
        "host_blocks_used": 0,
        "host_blocks_total": 0,
        "switches": SwitchCounts(),
    }
    return EngineProgress(step=step, live=[*requests], **{**facts, **changes})


@pytest.fixture
def forward() -> ForwardProgress:
    """One that has seen a request with 10 prompt tokens done."""
    forward = ForwardProgress()
    assert forward.note(report(live("a", 10)))
    return forward


def test_tokens_are_progress(forward: ForwardProgress) -> None:
    """Of the prompt or of the output."""
    assert forward.note(report(live("a", 20)))
    assert forward.note(report(live("a", 20, 1)))


def test_steps_alone_are_none(forward: ForwardProgress) -> None:
    """Neither beside a running request that gets nothing, nor while all only wait."""
    assert not forward.note(report(live("a", 10), step=2))
    assert not forward.note(report(step=3, num_waiting=1))


def test_arrivals_are_none(forward: ForwardProgress) -> None:
    """Requests go on coming to an engine that is stuck."""
    assert not forward.note(report(live("a", 10), live("new", 0), num_waiting=1))


def test_an_engine_with_nothing_to_do_gets_on(forward: ForwardProgress) -> None:
    """Nothing can be asked of it."""
    assert forward.note(report())


def test_an_end_is_progress(forward: ForwardProgress) -> None:
    """Also one without a token more, as of an aborted request."""
    end = FinishedRequest("a", "acme", 100, 10, 0, "abort")
    assert forward.note(report(live("b", 0), finished=[end]))


def test_computing_again_is_progress(forward: ForwardProgress) -> None:
    """Its tokens were counted before, so only the engine's count of such tokens grows."""
    again = SwitchCounts(recomputed_tokens=64)
    assert forward.note(report(live("a", 10), switches=again))
    assert not forward.note(report(live("a", 10), switches=again))


def test_a_full_report_is_compared_too(forward: ForwardProgress) -> None:
    """A new router asks for one; it is no progress by itself, and nobody else is remembered."""
    assert not forward.note(report(live("a", 10), is_full=True))
    assert forward.note(report(live("a", 11), is_full=True))
