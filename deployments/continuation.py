"""How an answer goes on with another engine when its own is lost in the middle.

Owns the table of which request goes on in which way, and the record of what a request has put
out, against which an engine that repeats it is checked. Knows neither engines nor vLLM's types:
what is sent and received is ``vllm_continuation``'s, when and where ``vllm_client``'s.

To send the prompt with the tokens so far is how others migrate requests (NVIDIA Dynamo). It is
right where the next token depends on the tokens before it alone. Elsewhere they end the request;
here it runs again from its prompt, and nothing reaches the client before the new engine has
said, token for token, what the old one had said already.
"""

from array import array
from collections.abc import Iterable, Mapping, Sequence
from enum import IntEnum, auto

from deployments.errors import ReplayDivergedError


class Way(IntEnum):
    """How an answer goes on; of several that apply the greatest counts."""

    CONTINUE = auto()  # the prompt and the tokens so far are the new engine's prompt
    REPLAY = auto()  # the same request again, its first tokens compared and kept back
    END = auto()  # not at all: the client gets an error


# By vLLM's own names: sampling parameters, fields of a request, settings of the engines.
WAYS: Mapping[str, Way] = {
    # What chooses the next token by the tokens before it, and what the gateway does by itself.
    # Without a seed nobody was promised which tokens come: those to come are drawn afresh.
    **dict.fromkeys(
        (
            *("temperature", "top_p", "top_k", "min_p", "n", "logit_bias", "allowed_token_ids"),
            "repetition_penalty",  # weighs the prompt's tokens like the answer's
            *("max_tokens", "min_tokens"),  # lowered by what is out
            *("ignore_eos", "stop_token_ids", "stop", "include_stop_str_in_output"),
            *("logprobs", "logprob_token_ids", "flat_logprobs"),
            # Of the prompt: they came with the first token and are not asked for again.
            *("prompt_logprobs", "prompt_logprob_token_ids", "prompt_logprob_start"),
            *("detokenize", "skip_special_tokens", "spaces_between_special_tokens"),
            *("output_kind", "stream_interval", "output_text_buffer_length", "skip_clone"),
            *("skip_reading_prefix_cache", "extra_args"),
            # These depend on settings of the engines, which are below.
            *("watermarking", "routed_experts_prompt_start"),
            *("mm_features", "lora_request"),
        ),
        Way.CONTINUE,
    ),
    # What depends on where the answer begins, or on a state that moves with every token.
    **dict.fromkeys(
        (
            *("seed", "presence_penalty", "frequency_penalty", "structured_outputs", "bad_words"),
            *("repetition_detection", "thinking_token_budget", "trace_decode_token_ids"),
            *("prompt_embeds", "logits_processors", "watermark_config"),
        ),
        Way.REPLAY,
    ),
    # What is told of an answer as a whole, or changes while it runs.
    **dict.fromkeys(
        ("pooling_params", "resumable", "return_sampling_mask", "enable_return_routed_experts"),
        Way.END,
    ),
}


def way(asked_for: Iterable[str]) -> Way:
    """How a request that asks for these goes on; what the table has not is not known to be safe."""
    return max((WAYS.get(name, Way.END) for name in asked_for), default=Way.CONTINUE)


class Transcript:
    """The tokens that a request has put out, four bytes each.

    After ``rewind`` an engine says them again from the first: each has to be the one that stands
    here. Those that follow are new.
    """

    __slots__ = ("_num_expected", "_tokens")

    def __init__(self) -> None:
        self._tokens = array("I")
        self._num_expected = 0  # of the last tokens here, so many are yet to be said again

    def __len__(self) -> int:
        return len(self._tokens)

    @property
    def tokens(self) -> list[int]:
        return self._tokens.tolist()

    def rewind(self) -> None:
        self._num_expected = len(self._tokens)

    def take(self, token_ids: Sequence[int], *, is_end: bool) -> int:
        """Take in an engine's next tokens; how many of them, the first ones, stood here already.

        Raises:
            ReplayDivergedError: a token is not the one that stands here, or the answer is to end
                before all have been said again. Nothing is taken.
        """
        if not self._num_expected:
            self._tokens.extend(token_ids)
            return 0
        position = len(self._tokens) - self._num_expected
        num_known = min(self._num_expected, len(token_ids))
        for offset in range(num_known):
            if self._tokens[position + offset] != token_ids[offset]:
                raise ReplayDivergedError(position + offset, len(self._tokens))
        if is_end and num_known < self._num_expected:
            raise ReplayDivergedError(position + num_known, len(self._tokens))
        self._num_expected -= num_known
        self._tokens.extend(token_ids[num_known:])
        return num_known
