"""Errors of the scheduler travel between processes."""

import pickle

import pytest

from scheduler.errors import (
    InvalidWeightError,
    NoEngineError,
    NotFreshError,
    QuotaExceededError,
    SchedulerError,
    SchedulerSettingError,
    UnknownEngineError,
)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            NoEngineError("r1", joined=2, avoided=3),
            "request r1: no engine can take it, 2 joined and 3 to be avoided",
        ),
        (UnknownEngineError("e1"), "engine e1 has not joined"),
        (
            InvalidWeightError("acme", -1.0),
            "tenant acme: weight -1.0 must be a finite number above 0",
        ),
        (
            QuotaExceededError("acme", "max_concurrent", most=2, wanted=1, retry_after_s=1.2),
            "tenant acme has reached its max_concurrent of 2; try again in 2 s",
        ),
        (
            QuotaExceededError("acme", "tokens_per_minute", most=9, wanted=10, retry_after_s=60),
            (
                "tenant acme: this request alone may take 10 tokens, prompt and output together, "
                "and tokens_per_minute is 9; shorten the prompt or lower max_tokens"
            ),
        ),
        (
            NotFreshError(num_engines=1, num_requests=7),
            (
                "a checkpoint can be restored only into a new scheduler: "
                "this one has 1 engines and 7 live requests"
            ),
        ),
        (
            SchedulerSettingError("max_switches", "unknown"),
            "additional_config, 'max_switches': unknown",
        ),
    ],
)
def test_an_error_says_the_same_after_pickling(error: SchedulerError, message: str) -> None:
    """Ray pickles errors by their arguments: nothing of the message may get lost."""
    assert str(pickle.loads(pickle.dumps(error))) == str(error) == message  # noqa: S301 - ours
