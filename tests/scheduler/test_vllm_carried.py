"""Requests that come in the middle of their answer: reported as the requests that they are."""

from pathlib import Path

import pytest

from scheduler.reports import EngineProgress
from scheduler.vllm_scheduler import CARRIED_ARG
from tests.scheduler.scheduler_harness import Stepped


@pytest.fixture
def stepped(tiny_model: Path) -> Stepped:
    return Stepped(tiny_model)


def progress(stepped: Stepped) -> EngineProgress:
    return stepped.scheduler.take_progress(is_full=True)


@pytest.mark.parametrize("num_in_prompt", [7, 0], ids=["continued", "replayed"])
def test_only_what_is_new_is_reported_as_served(stepped: Stepped, num_in_prompt: int) -> None:
    """Of 20 prompt tokens and 7 of the answer, whether those stand in the prompt or come again."""
    stepped.add(
        "r1",
        num_tokens=20 + num_in_prompt,
        max_tokens=12 - num_in_prompt,
        extra_args={CARRIED_ARG: [7, num_in_prompt]},
    )
    [live] = progress(stepped).live
    assert (live.prompt_tokens, live.prompt_done, live.output_done) == (20, 20, 7)

    for num_steps in range(1, 12 - num_in_prompt):
        stepped.step()
        report = progress(stepped)
        [live] = report.live
        num_new = max(0, num_steps + num_in_prompt - 7)
        assert (live.prompt_done, live.output_done) == (20, 7 + num_new)
        assert report.tenant_service == {"default": (0, num_new)}

    stepped.step()
    report = progress(stepped)
    [finished] = report.finished
    assert (finished.prompt_tokens, finished.output_done, finished.reason) == (20, 12, "length")
    assert report.tenant_service == {"default": (0, 5)}


def test_others_are_reported_from_their_beginning(stepped: Stepped) -> None:
    """One that carries nothing is charged for its prompt and its whole answer."""
    stepped.add("r1", num_tokens=20, max_tokens=3)
    stepped.drain()

    assert progress(stepped).tenant_service == {"default": (20, 3)}
