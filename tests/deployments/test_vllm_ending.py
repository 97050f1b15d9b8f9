"""What an engine that was told to end makes of requests it can no longer take."""

import queue
from unittest.mock import Mock

import pytest
from vllm import SamplingParams
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.core import EngineShutdownState

from deployments.vllm_engine import ListeningEngineCore

REQUEST = EngineCoreRequest(
    request_id="r",
    prompt_token_ids=[1],
    mm_features=None,
    sampling_params=SamplingParams(),
    pooling_params=None,
    arrival_time=0.0,
    lora_request=None,
    cache_salt=None,
    data_parallel_rank=None,
)


@pytest.mark.parametrize("state", EngineShutdownState)
def test_only_an_engine_that_goes_on_blames_the_request(state: EngineShutdownState) -> None:
    """One whose grammar compiler has ended already is silent: the request goes on elsewhere."""
    core = object.__new__(ListeningEngineCore)
    core._heard_s = {}
    core.shutdown_state = state
    core.output_queue = queue.Queue()
    core.preprocess_add_request = Mock(side_effect=RuntimeError("cannot schedule new futures"))

    core._take_request(REQUEST)

    assert core.output_queue.empty() == (state is not EngineShutdownState.RUNNING)
