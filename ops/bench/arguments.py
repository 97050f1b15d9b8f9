"""Types of command line arguments that several benchmarks take."""

from argparse import ArgumentTypeError
from collections.abc import Callable, Collection
from contextlib import suppress
from math import inf

from ops.bench.workload import Span


def count(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or int(text) < 1:
        raise ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def counts(text: str) -> tuple[int, ...]:
    """Whole numbers above 0, such as 1024,4096."""
    return tuple(map(count, text.split(",")))


def span(text: str) -> Span:
    """Token counts such as 64:192, or 128."""
    try:
        return Span.parse(text)
    except ValueError as error:
        raise ArgumentTypeError(str(error)) from None


def positive(text: str) -> float:
    """A number above 0."""
    with suppress(ValueError):
        if 0 < (number := float(text)) < inf:
            return number
    raise ArgumentTypeError(f"{text!r} is not a number above 0")


def share(text: str) -> float:
    """A number above 0, at most 1."""
    if (number := positive(text)) > 1:
        raise ArgumentTypeError(f"{text!r} is above 1")
    return number


def modes(known: Collection[str]) -> Callable[[str], tuple[str, ...]]:
    """A reader of names such as a,b, each one of the ``known`` and once."""

    def read(text: str) -> tuple[str, ...]:
        names = tuple(text.split(","))
        if unknown := [name for name in names if name not in known]:
            raise ArgumentTypeError(f"{unknown[0]!r} is none of {', '.join(known)}")
        if len({*names}) < len(names):
            raise ArgumentTypeError(f"a mode is named twice in {text!r}")
        return names

    return read
