"""Errors of the benchmarks.

BenchError (an AppError: the command line prints it as its one sentence)
├── TraceError             a trace cannot be read, or holds nothing that fits
├── ServerStartError       a server to be measured did not come up
├── RequestFailedError     a request of the workload was refused or broke off
├── UnevenLoadError        a tenant did not always want more, so its share says nothing
└── EngineFailedError      an engine to be measured ended
"""

from pathlib import Path

from app.errors import AppError


class BenchError(AppError):
    """Base of everything that keeps a benchmark from its result."""


class TraceError(BenchError):
    """A trace cannot be read, or holds nothing that the model can take."""

    def __init__(self, path: Path, problem: str) -> None:
        super().__init__(path, problem)
        self.path, self.problem = path, problem

    def __str__(self) -> str:
        return f"trace {self.path}: {self.problem}"


class ServerStartError(BenchError):
    """A server to be measured did not come up."""

    def __init__(self, server: str, reason: str) -> None:
        super().__init__(server, reason)
        self.server, self.reason = server, reason

    def __str__(self) -> str:
        return f"the {self.server} server did not start: {self.reason}"


class RequestFailedError(BenchError):
    """A request was refused or broke off, so the numbers would mean nothing."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"a request of the benchmark failed: {self.reason}"


class UnevenLoadError(BenchError):
    """A tenant that was to want more all the time did not, for half of it or longer."""

    def __init__(self, tenant: str) -> None:
        super().__init__(tenant)
        self.tenant = tenant

    def __str__(self) -> str:
        return f"tenant {self.tenant} did not want more all the time: shares would say nothing"


class EngineFailedError(BenchError):
    """An engine to be measured ended before it had answered."""

    def __init__(self, mode: str, reason: str) -> None:
        super().__init__(mode, reason)
        self.mode, self.reason = mode, reason

    def __str__(self) -> str:
        return f"the engine of mode {self.mode} ended: {self.reason}"
