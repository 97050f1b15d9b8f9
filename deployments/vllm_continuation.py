"""Continued requests in vLLM's types: what an engine is sent, and what the frontend gets to see.

Owns how a request of vLLM's looks that begins in the middle of its answer, and how the outputs
that follow are made to look as if there had been one engine all along. Which request goes on in
which way is ``continuation``'s to say, when and where ``vllm_client``'s.
"""

from collections.abc import Sequence
from random import Random

import msgspec
from vllm import SamplingParams
from vllm.config import VllmConfig
from vllm.sampling_params import SamplingType
from vllm.v1.engine import EngineCoreOutput, EngineCoreRequest
from vllm.v1.outputs import LogprobsLists

from deployments.continuation import WAYS, Way, way

# Where the engine's scheduler looks for how many tokens of the answer are out already, and how
# many of those stand in the prompt.
CARRIED_ARG = "fastswitch_carried"

_DEFAULTS = SamplingParams()
_DECISIVE = tuple(
    name
    for name in SamplingParams.__struct_fields__
    if not name.startswith("_") and WAYS.get(name, Way.END) is not Way.CONTINUE
)


def engine_wide(config: VllmConfig) -> frozenset[str]:
    """What the engines' settings ask of every request, by the names of ``continuation.WAYS``."""
    model = config.model_config
    settings = {
        "logits_processors": model and model.logits_processors,
        "watermark_config": config.watermark_config,
        "return_sampling_mask": model and model.return_sampling_mask,
        "enable_return_routed_experts": config.aux_output_config.enable_return_routed_experts,
    }
    return frozenset(name for name, value in settings.items() if value)


def way_of(request: EngineCoreRequest, engines_ask: frozenset[str]) -> Way:
    """How ``request`` would go on."""
    fields = ("prompt_embeds", "pooling_params", "resumable")
    values = {name: getattr(request, name) for name in fields}
    asked_for = {name for name, value in values.items() if value is not None and value is not False}
    params = request.sampling_params
    if params is not None:
        asked_for.update(
            name for name in _DECISIVE if getattr(params, name) != getattr(_DEFAULTS, name)
        )
        if params.sampling_type is SamplingType.GREEDY:
            asked_for.discard("seed")  # nothing is drawn
    return way(asked_for | engines_ask)


def make_repeatable(request: EngineCoreRequest, random: Random) -> None:
    """Give a request that samples a seed, unless it has one: else no engine could repeat it."""
    params = request.sampling_params
    if params is not None and params.sampling_type is SamplingType.RANDOM:
        request.sampling_params = msgspec.structs.replace(params, seed=random.getrandbits(63))


def continued(
    request: EngineCoreRequest, tokens: Sequence[int], chosen_way: Way
) -> EngineCoreRequest:
    """``request`` as the engine gets it that takes it up when ``tokens`` of its answer are out."""
    params = request.sampling_params
    assert params is not None
    assert chosen_way is not Way.END
    if chosen_way is Way.REPLAY:
        return msgspec.structs.replace(
            request, sampling_params=_carrying(params, len(tokens), num_in_prompt=0)
        )
    assert request.prompt_token_ids is not None
    assert params.max_tokens is not None  # vLLM's frontend fills it in
    return msgspec.structs.replace(
        request,
        prompt_token_ids=[*request.prompt_token_ids, *tokens],
        sampling_params=msgspec.structs.replace(
            _carrying(params, len(tokens), num_in_prompt=len(tokens)),
            max_tokens=params.max_tokens - len(tokens),
            min_tokens=max(0, params.min_tokens - len(tokens)),
            prompt_logprobs=None,
            prompt_logprob_token_ids=None,
            prompt_logprob_start=None,
        ),
    )


def make_seamless(output: EngineCoreOutput, num_known: int) -> bool:
    """Take out of a continued request's output what the frontend has had, or would wonder at.

    Its first ``num_known`` tokens are repetitions. Returns whether anything is left to be told.
    """
    output.new_prompt_logprobs_tensors = output.prompt_token_id_logprobs = None
    output.prefill_stats = output.events = None  # of a prompt and a wait that were not its first
    if num_known:
        del output.new_token_ids[:num_known]
        if output.new_logprobs is not None:
            token_ids, logprobs, ranks, _ = output.new_logprobs
            output.new_logprobs = LogprobsLists(
                token_ids[num_known:], logprobs[num_known:], ranks[num_known:]
            )
    return bool(output.new_token_ids) or output.finish_reason is not None


def _carrying(params: SamplingParams, num_out: int, *, num_in_prompt: int) -> SamplingParams:
    extra_args = {**(params.extra_args or {}), CARRIED_ARG: [num_out, num_in_prompt]}
    return msgspec.structs.replace(params, extra_args=extra_args)
