"""Whether an engine gets on with what it has: tokens count, steps do not.

vLLM counts a step whenever it schedules, also when it schedules nothing: a deadlocked engine steps
on for ever, with everybody waiting. So progress is a token that was not there at the report
before, of the prompt or of the output, also one that is computed again; or that a request ended; or
that there is nothing to do.
"""

from scheduler.reports import EngineProgress


class ForwardProgress:
    """Compares an engine's reports, each with the one before."""

    def __init__(self) -> None:
        self._tokens: dict[str, int] = {}  # of live requests, as last reported
        self._num_recomputed = 0

    def note(self, report: EngineProgress) -> bool:
        """Whether the engine got on since the last report."""
        has_moved = bool(report.finished) or self._is_idle(report)
        if report.switches.recomputed_tokens != self._num_recomputed:
            self._num_recomputed = report.switches.recomputed_tokens
            has_moved = True
        before, tokens = self._tokens, {} if report.is_full else self._tokens
        for request in report.live:
            num_tokens = request.prompt_done + request.output_done
            has_moved |= num_tokens > before.get(request.request_id, 0)
            tokens[request.request_id] = num_tokens
        for finished in report.finished:
            tokens.pop(finished.request_id, None)
        self._tokens = tokens
        return has_moved

    @staticmethod
    def _is_idle(report: EngineProgress) -> bool:
        return report.num_running == report.num_waiting == 0
