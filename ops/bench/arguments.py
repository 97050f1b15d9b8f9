"""Types of command line arguments that several benchmarks take."""

from argparse import ArgumentTypeError

from ops.bench.workload import Span


def count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def span(text: str) -> Span:
    """Token counts such as 64:192, or 128."""
    try:
        return Span.parse(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None
