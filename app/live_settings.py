"""Settings that change while the application runs: the ``user_config`` of the Router deployment.

Owns which settings those are and how what is said there goes with what stands under ``args``.
Serve hands a changed ``user_config`` to the router that runs and restarts nothing, where changed
``args`` replace every process. What the router does with it is ``deployments.router``'s.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from app.errors import LiveSettingsError
from app.problems import describe
from app.settings import AppArgs

WHERE = "user_config"
LIVE = ("fairness", "tenants", "tenant_defaults")
# Of those, what an engine is started with.
FIXED_IN_FAIRNESS = ("max_switches_per_s",)


def with_live(args: AppArgs, user_config: object) -> AppArgs:
    """``args`` with the settings of ``user_config`` in the place of its own.

    Of ``fairness`` each field counts for itself; ``tenants`` and ``tenant_defaults`` are whole.

    Raises:
        LiveSettingsError: the first thing that is not allowed, by name.
    """
    live = _fields(user_config, WHERE)
    if unknown := sorted(live.keys() - set(LIVE)):
        reason = f"cannot change while it runs; what can is {', '.join(LIVE)}"
        raise LiveSettingsError(f"{WHERE}.{unknown[0]}: {reason}")
    fairness = _fields(live.get("fairness", {}), f"{WHERE}.fairness")
    for name in FIXED_IN_FAIRNESS:
        if name in fairness:
            reason = "engines are started with it: it changes under args alone"
            raise LiveSettingsError(f"{WHERE}.fairness.{name}: {reason}")
    stated = args.model_dump(exclude_unset=True)
    stated |= {**live, "fairness": {**stated.get("fairness", {}), **fairness}}
    try:
        return AppArgs.model_validate(stated)
    except ValidationError as error:
        raise LiveSettingsError(describe(error, WHERE)) from None


def _fields(section: object, where: str) -> Mapping[str, Any]:
    if section is None:  # as YAML has a heading with nothing under it
        return {}
    if not isinstance(section, Mapping):
        raise LiveSettingsError(f"{where}: has no fields")
    return section
