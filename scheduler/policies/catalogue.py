"""The policies there are, by the names that settings use.

Owns how a name becomes a policy: this is the one place where a policy is entered, and the only
one that knows which settings concern which. A policy of somebody else's is named by its import
path, ``module:Class``, and entered nowhere.
"""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from scheduler.errors import PolicyImportError, UnknownPolicyError
from scheduler.policies.deadline import Deadline, LatencyTargets
from scheduler.policies.fair_user import FairUser
from scheduler.policies.fcfs import FirstComeFirstServed
from scheduler.policies.policy import Policy, PolicyFactory
from scheduler.policies.program_fcfs import ProgramFirstComeFirstServed
from scheduler.policies.static import StaticPriority
from scheduler.policies.trace import TracePriorities
from scheduler.policies.vtc import VirtualTokenCounter
from scheduler.service import ServiceWeights
from scheduler.shares import ServiceClass, TenantShares


@dataclass(frozen=True, slots=True)
class PolicyOptions:
    """What settings say to policies. Each takes what concerns it."""

    quantum: float  # service units
    batch_lag: float  # service units
    head_start: float  # service units
    targets: Mapping[ServiceClass, LatencyTargets]
    slack_quantum_s: float
    update_frequency: float  # per engine step
    seed: str
    own: Mapping[str, Any] = field(default_factory=dict)  # for a policy with an import path


POLICIES: Mapping[str, Callable[[PolicyOptions], PolicyFactory]] = {
    "vtc": lambda options: partial(
        VirtualTokenCounter,
        quantum=options.quantum,
        batch_lag=options.batch_lag,
        head_start=options.head_start,
    ),
    "deadline": lambda options: partial(
        Deadline, targets=options.targets, slack_quantum_s=options.slack_quantum_s
    ),
    "fair-user": lambda options: partial(FairUser, quantum=options.quantum),
    "fcfs": lambda _: FirstComeFirstServed,
    "program-fcfs": lambda _: ProgramFirstComeFirstServed,
    "static": lambda _: StaticPriority,
    "random": lambda options: _trace("random", options),
    "markov": lambda options: _trace("markov", options),
}

_METHODS = sorted(name for name in vars(Policy) if not name.startswith("_") and name != "name")


def policy_factory(name: str, options: PolicyOptions) -> PolicyFactory:
    """How to make the policy of that name or import path.

    Raises:
        UnknownPolicyError: the catalogue has no such name.
        PolicyImportError: the import path leads to nothing that can be used.
    """
    if ":" not in name:
        if name not in POLICIES:
            raise UnknownPolicyError(name, ", ".join(POLICIES))
        return POLICIES[name](options)
    factory = partial(_policy_class(name), **options.own)
    try:
        factory(ServiceWeights(), TenantShares())
    except Exception as error:
        raise PolicyImportError(name, f"cannot be made: {error}") from error
    return factory


def _trace(pattern: str, options: PolicyOptions) -> PolicyFactory:
    return partial(
        TracePriorities,
        pattern=pattern,
        seed=options.seed,
        update_frequency=options.update_frequency,
    )


def _policy_class(path: str) -> Callable[..., Policy]:
    module_name, _, class_name = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # somebody else's module may fail in any way
        problem = f"module {module_name!r} cannot be imported: {error}"
        raise PolicyImportError(path, problem) from error
    policy = getattr(module, class_name, None)
    if not isinstance(policy, type):
        raise PolicyImportError(path, f"module {module_name!r} has no class {class_name!r}")
    missing = [method for method in ("name", *_METHODS) if not hasattr(policy, method)]
    if missing:
        raise PolicyImportError(path, f"class {class_name!r} lacks {', '.join(missing)}")
    return policy
