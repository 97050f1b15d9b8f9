"""A benchmark's progress, told on standard error while it runs."""

from time import monotonic

from app.deploy_watch import tell


class Progress:
    """Lines for people, each with the time since the benchmark began."""

    def __init__(self) -> None:
        self._began_s = monotonic()

    def tell(self, line: str) -> None:
        tell(line, monotonic() - self._began_s)
