"""Errors of the deployments. All cross Ray actors whole.

DeploymentError
├── RouterAwayError      the router did not answer in time
├── NoEngineLeftError    no engine can take a request
├── ReplayDivergedError  an engine does not repeat what another one has put out
├── EngineStartError     the engine process ended before it was ready
└── EngineStalledError   the engine process is there but makes no progress
"""


class DeploymentError(Exception):
    """Base of everything that goes wrong between the processes."""


class RouterAwayError(DeploymentError):
    """The router did not answer a call in time."""

    def __init__(self, call: str, timeout_s: float) -> None:
        super().__init__(call, timeout_s)
        self.call, self.timeout_s = call, timeout_s

    def __str__(self) -> str:
        return f"router: no answer to {self.call} within {self.timeout_s:g} s"


class NoEngineLeftError(DeploymentError):
    """No engine is known that could take a request."""

    def __str__(self) -> str:
        return "no engine is ready to take requests; they may still be starting"


class ReplayDivergedError(DeploymentError):
    """An engine that runs a request again puts out something else than the one before it."""

    def __init__(self, position: int, num_tokens: int) -> None:
        super().__init__(position, num_tokens)
        self.position, self.num_tokens = position, num_tokens

    def __str__(self) -> str:
        return f"token {self.position} of the {self.num_tokens} to be repeated came out different"


class EngineStartError(DeploymentError):
    """An engine process ended before it was ready."""

    def __init__(self, engine_id: str, exit_status: int | None, reason: str) -> None:
        super().__init__(engine_id, exit_status, reason)
        self.engine_id, self.exit_status, self.reason = engine_id, exit_status, reason

    def __str__(self) -> str:
        return f"engine {self.engine_id} ended with status {self.exit_status}: {self.reason}"


class EngineStalledError(DeploymentError):
    """An engine process that lives but no longer answers or steps."""

    def __init__(self, engine_id: str, silent_s: float) -> None:
        super().__init__(engine_id, silent_s)
        self.engine_id, self.silent_s = engine_id, silent_s

    def __str__(self) -> str:
        return f"engine {self.engine_id} has made no progress for {self.silent_s:.0f} s"
