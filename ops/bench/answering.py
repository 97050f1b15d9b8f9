"""The benchmark's line to an engine process, at that process's end of it.

The other end is ``ops.bench.engine_process``.
"""

import os
import sys
from collections.abc import Callable
from typing import Any

import msgspec


def answer_lines(
    make_answer: Callable[[dict[str, Any]], Callable[[Any], Any]], question: type
) -> None:
    """Answer each line of standard input, a ``question``, with one of standard output.

    The first line has what ``make_answer`` makes the answering function of.
    """
    # What libraries print belongs to the log; standard output is the line to the benchmark.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    answer = make_answer(msgspec.json.decode(sys.stdin.buffer.readline()))
    for line in sys.stdin.buffer:
        answers.write(msgspec.json.encode(answer(msgspec.json.decode(line, type=question))) + b"\n")
        answers.flush()
