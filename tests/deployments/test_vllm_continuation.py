"""Continued requests in vLLM's types: what the engine is sent and what the frontend is shown."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from random import Random
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.sampling_params import (
    RepetitionDetectionParams,
    RequestOutputKind,
    StructuredOutputsParams,
)
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector
from vllm.v1.metrics.stats import PrefillStats
from vllm.v1.outputs import LogprobsLists, LogprobsTensors

from deployments.continuation import WAYS, Transcript, Way
from deployments.vllm_continuation import (
    CARRIED_ARG,
    continued,
    engine_wide,
    make_repeatable,
    make_seamless,
    way_of,
)

PROMPT = [5, 6, 7]
END_TOKEN = 0


def make_request(**params: Any) -> EngineCoreRequest:
    return EngineCoreRequest(
        request_id="r1",
        prompt_token_ids=list(PROMPT),
        mm_features=None,
        sampling_params=SamplingParams(**{"max_tokens": 20, **params}),
        pooling_params=None,
        arrival_time=1.5,
        lora_request=None,
        cache_salt="salt",
        data_parallel_rank=None,
        external_req_id="r1",
    )


def params_of(request: EngineCoreRequest) -> SamplingParams:
    assert request.sampling_params is not None
    return request.sampling_params


# --- the way --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "params",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 0.0, "seed": 3},
        {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "min_p": 0.1},
        {"min_tokens": 4, "stop_token_ids": [9], "stop": ["end"]},
        {"logprobs": 3, "prompt_logprobs": 2},
        {"logit_bias": {4: 1.0}, "allowed_token_ids": [4, 5]},
        {"repetition_penalty": 1.2},
        {"extra_args": {"anything": 1}},
    ],
    ids=str,
)
def test_tokens_alone_are_enough_for_most_requests(params: dict[str, Any]) -> None:
    """A seed changes nothing where nothing is drawn."""
    assert way_of(make_request(**params), frozenset()) is Way.CONTINUE


@pytest.mark.parametrize(
    "params",
    [
        {"seed": 3},
        {"presence_penalty": 0.5},
        {"temperature": 0.0, "frequency_penalty": -0.5},
        {"structured_outputs": StructuredOutputsParams(regex="a+")},
        {"bad_words": ["word"]},
        {"thinking_token_budget": 10},
        {
            "repetition_detection": RepetitionDetectionParams(
                max_pattern_size=2, min_pattern_size=1, min_count=3
            )
        },
        {"trace_decode_token_ids": [1, 2]},
    ],
    ids=str,
)
def test_what_moves_with_each_token_is_replayed(params: dict[str, Any]) -> None:
    """Its state cannot be told by prompt and tokens."""
    assert way_of(make_request(**params), frozenset()) is Way.REPLAY


def test_other_fields_of_a_request_decide_too() -> None:
    """Embeddings have no tokens; a session that is still fed has no end."""
    request = make_request()
    embeds = msgspec.structs.replace(request, prompt_embeds=torch.zeros(2, 4))

    assert way_of(embeds, frozenset()) is Way.REPLAY
    assert way_of(msgspec.structs.replace(request, resumable=True), frozenset()) is Way.END


def test_what_the_engines_do_to_every_request_decides_for_all() -> None:
    """Here: an operator's own logits processors, and outputs that tell more than tokens."""
    config = VllmConfig()
    assert engine_wide(config) == frozenset()
    config.aux_output_config.enable_return_routed_experts = True
    assert engine_wide(config) == {"enable_return_routed_experts"}

    assert way_of(make_request(), frozenset({"logits_processors"})) is Way.REPLAY
    assert way_of(make_request(), engine_wide(config)) is Way.END


def test_every_sampling_parameter_of_vllms_has_its_way() -> None:
    """One that a new release brings is not in the table, and this says so."""
    parameters = {name for name in SamplingParams.__struct_fields__ if not name.startswith("_")}
    fields = {"mm_features", "lora_request", "prompt_embeds", "pooling_params", "resumable"}
    settings = {
        *("logits_processors", "watermark_config"),
        *("return_sampling_mask", "enable_return_routed_experts"),
    }

    assert set(WAYS) == parameters | fields | settings
    assert fields <= set(EngineCoreRequest.__struct_fields__)


def test_a_sampled_request_is_given_a_seed_where_it_has_none() -> None:
    """So that another engine draws the same; requests that share parameters draw their own."""
    request = make_request(presence_penalty=0.5)
    other = msgspec.structs.replace(request)
    shared = params_of(request)
    random = Random(0)
    make_repeatable(request, random)
    make_repeatable(other, random)

    assert shared.seed is None
    assert params_of(request).seed != params_of(other).seed
    assert params_of(request) == msgspec.structs.replace(shared, seed=params_of(request).seed)


@pytest.mark.parametrize("params", [{"seed": 3}, {"temperature": 0.0, "presence_penalty": 0.5}])
def test_a_request_that_can_be_repeated_is_left_alone(params: dict[str, Any]) -> None:
    """Greedy or with a seed of its own."""
    request = make_request(**params)
    before = params_of(request)
    make_repeatable(request, Random(0))
    assert request.sampling_params is before


# --- what the engine is sent ----------------------------------------------------------------------


def test_a_continued_request_is_what_is_left_of_the_answer() -> None:
    """The tokens so far end the prompt, limits shrink by them; the original stays as it was."""
    request = make_request(max_tokens=20, min_tokens=5, extra_args={"own": 1}, stop_token_ids=[9])
    sent = continued(request, [10, 11], Way.CONTINUE)

    assert sent.prompt_token_ids == [*PROMPT, 10, 11]
    assert (params_of(sent).max_tokens, params_of(sent).min_tokens) == (18, 3)
    assert params_of(sent).extra_args == {"own": 1, CARRIED_ARG: [2, 2]}
    assert params_of(sent).stop_token_ids == [9]
    assert (sent.request_id, sent.arrival_time, sent.cache_salt) == ("r1", 1.5, "salt")
    assert request == make_request(
        max_tokens=20, min_tokens=5, extra_args={"own": 1}, stop_token_ids=[9]
    )


def test_limits_shrink_to_the_last_token() -> None:
    """One more is always allowed, else the answer had ended; no fewer than none are demanded."""
    sent = continued(make_request(max_tokens=3, min_tokens=1), [10, 11], Way.CONTINUE)
    assert (params_of(sent).max_tokens, params_of(sent).min_tokens) == (1, 0)


def test_a_continued_request_asks_for_no_prompt_logprobs() -> None:
    """They came with the first token."""
    sent = continued(make_request(prompt_logprobs=3, logprobs=2), [10], Way.CONTINUE)
    assert (params_of(sent).prompt_logprobs, params_of(sent).logprobs) == (None, 2)


def test_a_replayed_request_is_the_same_again() -> None:
    """But for the note of how much of it is out."""
    request = make_request(seed=3, min_tokens=5, prompt_logprobs=1)
    sent = continued(request, [10, 11], Way.REPLAY)

    assert params_of(sent).extra_args == {CARRIED_ARG: [2, 0]}
    params_of(sent).extra_args = None
    assert sent == request


# --- what the frontend is shown -------------------------------------------------------------------


def logprobs_of(token_ids: Sequence[int]) -> LogprobsLists:
    rows = np.array(token_ids)
    return LogprobsLists(rows[:, None], -rows[:, None] / 10, rows)


def test_repeated_tokens_are_taken_out_with_their_logprobs() -> None:
    """Those of the tokens that are new stay theirs."""
    output = EngineCoreOutput("r1", [10, 11, 12], new_logprobs=logprobs_of([10, 11, 12]))
    assert make_seamless(output, 2)

    assert output.new_token_ids == [12]
    assert output.new_logprobs is not None
    for kept, wanted in zip(output.new_logprobs, logprobs_of([12]), strict=True):
        assert kept is wanted is None or np.array_equal(kept, wanted)


def test_an_output_with_nothing_new_is_not_shown() -> None:
    """Unless it ends the answer."""
    assert not make_seamless(EngineCoreOutput("r1", [10]), 1)
    assert make_seamless(EngineCoreOutput("r1", [10], finish_reason=FinishReason.ABORT), 1)


def test_vllms_frontend_sees_one_request() -> None:
    """Its usage is that of the original prompt, and prompt logprobs come once."""
    kind = RequestOutputKind.DELTA
    request = make_request(prompt_logprobs=0, logprobs=0, detokenize=False, output_kind=kind)
    processor = OutputProcessor(None, log_stats=False)
    queue = RequestOutputCollector(kind, "r1")
    processor.add_request(request, None, queue=queue)

    def show(output: EngineCoreOutput) -> Any:
        processor.process_outputs([output])
        return queue.get_nowait()

    first = show(an_output([10], cached_tokens=2))
    again = an_output([10, 11], cached_tokens=3)
    assert make_seamless(again, 1)
    second = show(again)

    assert (first.num_cached_tokens, second.num_cached_tokens) == (2, 2)
    assert len(first.prompt_logprobs) == len(PROMPT)
    assert not second.prompt_logprobs
    assert second.prompt_token_ids == PROMPT
    assert second.outputs[0].token_ids == [11]
    assert [list(position) for position in second.outputs[0].logprobs] == [[11]]


def an_output(token_ids: list[int], *, cached_tokens: int) -> EngineCoreOutput:
    """A request's first output on an engine."""
    num_scored = len(PROMPT) - 1
    return EngineCoreOutput(
        "r1",
        token_ids,
        new_logprobs=logprobs_of(token_ids),
        new_prompt_logprobs_tensors=LogprobsTensors(
            torch.ones(num_scored, 1, dtype=torch.int32),
            torch.zeros(num_scored, 1),
            torch.ones(num_scored, dtype=torch.int32),
        ),
        prefill_stats=PrefillStats(num_cached_tokens=cached_tokens),
    )


# --- any answer, lost anywhere --------------------------------------------------------------------


@dataclass
class FakeEngine:
    """Puts out a token that depends on all before it, and by its way on where the answer began."""

    request: EngineCoreRequest

    def outputs(self) -> Iterator[EngineCoreOutput]:
        assert self.request.prompt_token_ids is not None
        params = params_of(self.request)
        assert params.max_tokens is not None
        tokens, num_out = list(self.request.prompt_token_ids), 0
        while True:
            token = self._next_token(tokens, num_out, params)
            tokens.append(token)
            num_out += 1
            reason = None
            if token == END_TOKEN:
                reason = FinishReason.STOP
            elif num_out == params.max_tokens:
                reason = FinishReason.LENGTH
            yield EngineCoreOutput("r1", [token], finish_reason=reason)
            if reason is not None:
                return

    def _next_token(self, tokens: list[int], num_out: int, params: SamplingParams) -> int:
        state = [*tokens, num_out] if params.seed is not None else tokens
        first = END_TOKEN if num_out >= params.min_tokens else END_TOKEN + 1
        return Random(str((state, params.seed))).randint(first, 12)


@given(
    seed=st.none() | st.integers(0, 1000),
    max_tokens=st.integers(1, 30),
    min_tokens=st.integers(0, 30),
    losses=st.lists(st.integers(0, 12), max_size=5),
)
def test_an_answer_is_the_same_however_often_its_engine_is_lost(
    seed: int | None, max_tokens: int, min_tokens: int, losses: list[int]
) -> None:
    """Tokens and end are those of an engine that was never lost, continued or replayed."""
    limits = {"max_tokens": max_tokens, "min_tokens": min(min_tokens, max_tokens)}
    request = make_request(seed=seed, **limits)
    way = way_of(request, frozenset())
    undisturbed = list(FakeEngine(request).outputs())

    transcript, shown = Transcript(), []
    for lives_for in [*losses, max_tokens]:  # the last engine may say everything
        sent = continued(request, transcript.tokens, way) if len(transcript) else request
        if way is Way.REPLAY:
            transcript.rewind()
        for output in islice(FakeEngine(sent).outputs(), lives_for):
            num_known = transcript.take(output.new_token_ids, is_end=output.finished)
            if make_seamless(output, num_known):
                shown.append(output)
        if shown and shown[-1].finished:
            break

    assert shown == undisturbed
    assert way is (Way.CONTINUE if seed is None else Way.REPLAY)
