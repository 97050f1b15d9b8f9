"""The process of an engine that says how far apart two tokens are behind a text.

Run as ``python -m ops.bench.scoring_engine``: the engine's arguments as one line of JSON on
standard input, then a ``Question`` per line; each is answered with a ``Distance`` per line.
"""

from functools import partial

from vllm import LLMEngine, SamplingParams

from ops.bench.answering import answer_lines
from ops.bench.near_ties import Distance, Question
from ops.bench.replay_engine import make_engine

NUM_LIKELIEST = 20  # the most that vLLM tells by default


def distance(engine: LLMEngine, question: Question) -> Distance:
    params = SamplingParams(
        temperature=0, max_tokens=1, ignore_eos=True, detokenize=False, logprobs=NUM_LIKELIEST
    )
    engine.add_request("question", {"prompt_token_ids": question.text}, params)
    while engine.has_unfinished_requests():
        for output in engine.step():
            if output.finished:
                (logprobs,) = output.outputs[0].logprobs
    if any(token not in logprobs for token in question.tokens):
        return Distance(None)
    one, other = (logprobs[token].logprob for token in question.tokens)
    return Distance(abs(one - other))


def main() -> None:
    answer_lines(lambda arguments: partial(distance, make_engine(arguments)), Question)


if __name__ == "__main__":
    main()
