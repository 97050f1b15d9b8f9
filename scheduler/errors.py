"""What the scheduler can refuse, and why.

SchedulerError
├── NoEngineError        nowhere to run a request
├── UnknownEngineError   an engine speaks that has not joined
├── InvalidWeightError   a tenant's weight is not a positive, finite number
├── InvalidQuotaError    a tenant's limit is not above 0
├── UnknownPolicyError   no policy has that name
├── PolicyImportError    a policy named by its import path cannot be had
├── QuotaExceededError   a request would take its tenant past a limit of its own
└── NotFreshError        a checkpoint meets a scheduler that is already at work
├── NoEngineError          nowhere to run a request
├── UnknownEngineError     an engine speaks that has not joined
├── InvalidWeightError     a tenant's weight is not a positive, finite number
├── InvalidQuotaError      a tenant's limit is not above 0
├── NotFreshError          a checkpoint meets a scheduler that is already at work
└── SchedulerSettingError  an engine's scheduler is told what it does not understand
"""

from math import ceil


class SchedulerError(Exception):
    """Anything the scheduler refuses."""


class NoEngineError(SchedulerError):
    """Every engine that has joined is to be avoided, or none has joined."""

    def __init__(self, request_id: str, joined: int, avoided: int) -> None:
        super().__init__(request_id, joined, avoided)
        self.request_id, self.joined, self.avoided = request_id, joined, avoided

    def __str__(self) -> str:
        return (
            f"request {self.request_id}: no engine can take it, "
            f"{self.joined} joined and {self.avoided} to be avoided"
        )


class UnknownEngineError(SchedulerError):
    """An engine has to join before it reports or asks for priorities."""

    def __init__(self, engine_id: str) -> None:
        super().__init__(engine_id)
        self.engine_id = engine_id

    def __str__(self) -> str:
        return f"engine {self.engine_id} has not joined"


class InvalidWeightError(SchedulerError):
    """A tenant's weight cannot divide service."""

    def __init__(self, tenant: str, weight: float) -> None:
        super().__init__(tenant, weight)
        self.tenant, self.weight = tenant, weight

    def __str__(self) -> str:
        return f"tenant {self.tenant}: weight {self.weight} must be a finite number above 0"


class InvalidQuotaError(SchedulerError):
    """A tenant's limit would let nothing in."""

    def __init__(self, tenant: str, limit: str, value: float) -> None:
        super().__init__(tenant, limit, value)
        self.tenant, self.limit, self.value = tenant, limit, value

    def __str__(self) -> str:
        return f"tenant {self.tenant}: {self.limit} {self.value} must be above 0"


class UnknownPolicyError(SchedulerError):
    """A policy is neither in the catalogue nor named by an import path."""

    def __init__(self, policy: str, known: str) -> None:
        super().__init__(policy, known)
        self.policy, self.known = policy, known

    def __str__(self) -> str:
        return (
            f"there is no policy {self.policy!r}; there are {self.known}, "
            "and your own as module:Class"
        )


class PolicyImportError(SchedulerError):
    """What an import path names cannot be used as a policy."""

    def __init__(self, policy: str, problem: str) -> None:
        super().__init__(policy, problem)
        self.policy, self.problem = policy, problem

    def __str__(self) -> str:
        return f"policy {self.policy}: {self.problem}"


class QuotaExceededError(SchedulerError):
    """A request would take its tenant past one of the tenant's own limits."""

    def __init__(
        self, tenant: str, limit: str, most: int, wanted: int, retry_after_s: float
    ) -> None:
        """``wanted`` is what the request alone may take of the limit."""
        super().__init__(tenant, limit, most, wanted, retry_after_s)
        self.tenant, self.limit, self.most, self.wanted = tenant, limit, most, wanted
        self.retry_after_s = retry_after_s

    @property
    def is_for_good(self) -> bool:
        """Whether the request is past the limit all by itself, whenever it comes."""
        return self.wanted > self.most

    def __str__(self) -> str:
        if self.is_for_good:
            return (
                f"tenant {self.tenant}: this request alone may take {self.wanted} tokens, prompt "
                f"and output together, and {self.limit} is {self.most}; shorten the prompt or "
                "lower max_tokens"
            )
        return (
            f"tenant {self.tenant} has reached its {self.limit} of {self.most}; try again in "
            f"{ceil(self.retry_after_s)} s"
        )


class NotFreshError(SchedulerError):
    """A checkpoint can only be restored before anything has joined or been admitted."""

    def __init__(self, num_engines: int, num_requests: int) -> None:
        super().__init__(num_engines, num_requests)
        self.num_engines, self.num_requests = num_engines, num_requests

    def __str__(self) -> str:
        return (
            "a checkpoint can be restored only into a new scheduler: this one has "
            f"{self.num_engines} engines and {self.num_requests} live requests"
        )


class SchedulerSettingError(SchedulerError):
    """A setting in additional_config is unknown or of the wrong kind."""

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(setting, problem)
        self.setting, self.problem = setting, problem

    def __str__(self) -> str:
        return f"additional_config, {self.setting!r}: {self.problem}"
