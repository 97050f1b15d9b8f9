"""What the fleet has said to one HTTP request: that it may run, that it may not, or nothing yet.

Owns the facts on their way from the engine client, deep inside vLLM's app, back out to the edge.
vLLM begins a streamed answer, with status 200, before it asks the engine client: a refusal raised
there comes too late to be a status. So the edge gives each request a record, the engine client
writes into it, and whoever holds the answer's beginning back reads it there. How a refusal looks on
the wire is the edge's.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus

from scheduler.errors import QuotaExceededError

BUSY_RETRY_S = 5.0  # an engine that is replaced takes longer; clients double their wait themselves


@dataclass(frozen=True, slots=True)
class Denial:
    """Why the fleet does not take a request: for people, for programs, and when to come again."""

    status: HTTPStatus
    message: str
    code: str | int
    kind: str
    dropped_reason: str | None = None  # in the words of llm-d's gateway, as far as it has one
    retry_after_s: float | None = None
    is_for_good: bool = False  # however often it is sent again


def over_limit(error: QuotaExceededError) -> Denial:
    """A tenant is past a limit of its own."""
    return Denial(
        HTTPStatus.TOO_MANY_REQUESTS,
        str(error),
        code="rate_limit_exceeded",
        # OpenAI's own two.
        kind="tokens" if error.limit == "tokens_per_minute" else "requests",
        dropped_reason=f"rejected-{error.limit.replace('_', '-')}",
        retry_after_s=error.retry_after_s,
        is_for_good=error.is_for_good,
    )


def unavailable(message: str, dropped_reason: str) -> Denial:
    """The fleet cannot take anybody's request now."""
    status = HTTPStatus.SERVICE_UNAVAILABLE
    return Denial(status, message, int(status), status.phrase, dropped_reason, BUSY_RETRY_S)


def bad_request(message: str) -> Denial:
    """The request asks for what there is not."""
    status = HTTPStatus.BAD_REQUEST
    return Denial(status, message, int(status), "invalid_request_error", is_for_good=True)


class AdmissionRecord:
    """One HTTP request before the fleet. It may ask for several sequences, also at once.

    The first denial stands, whatever becomes of the other sequences. ``on_asked`` is called when
    the request has been read and asks for its first place, ``on_settled`` once nothing that its
    tenant has sent later could get a place before it. Both may be called more than once.
    """

    __slots__ = ("_has_asked", "_pending", "arrived_s", "denial", "on_asked", "on_settled")

    def __init__(self) -> None:
        self.arrived_s = time.monotonic()
        self.denial: Denial | None = None
        self.on_asked: Callable[[], None] = _do_nothing
        self.on_settled: Callable[[], None] = _do_nothing
        self._has_asked = False
        self._pending = 0

    @property
    def is_decided(self) -> bool:
        """Whether all that was asked for has been answered."""
        return self.denial is not None or (self._has_asked and not self._pending)

    def deny(self, denial: Denial) -> None:
        self.denial = self.denial or denial

    @contextmanager
    def asking(self) -> Iterator[None]:
        """Within it a sequence waits for its answer."""
        if not self._has_asked:
            self.on_asked()
        self._has_asked = True
        self._pending += 1
        try:
            yield
        finally:
            self._pending -= 1
            if not self._pending:
                self.on_settled()

    def in_line(self, in_turn: bool) -> None:  # noqa: FBT001 - a callback
        """It is in the fleet's line; unless ``in_turn``, what was sent later may come first."""
        if not in_turn:
            self.on_settled()


def _do_nothing() -> None: ...
