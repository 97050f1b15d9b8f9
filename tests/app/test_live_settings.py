"""Settings that change while it runs: what may, what it goes over, and what is said of the rest."""

from pathlib import Path
from typing import Any

import pytest

from app.errors import LiveSettingsError
from app.live_settings import with_live
from app.settings import AppArgs, FairnessSettings, TenantSettings

ARGS = AppArgs(
    replicas=3,
    fairness=FairnessSettings(policy="fcfs", quantum=64.0),
    tenants={"alice": TenantSettings(weight=2.0), "bob": TenantSettings(max_concurrent=5)},
)


@pytest.mark.parametrize("nothing", [{}, None, {"fairness": {}}, {"fairness": None}])
def test_nothing_said_changes_nothing(nothing: Any) -> None:
    """What the application was started with is in force."""
    assert with_live(ARGS, nothing) == ARGS


def test_each_field_of_fairness_counts_for_itself() -> None:
    """Those that are left out stay as they stand under ``args``."""
    live = with_live(ARGS, {"fairness": {"policy": "vtc", "update_s": 0.5}})

    assert live.fairness == FairnessSettings(policy="vtc", quantum=64.0, update_s=0.5)
    assert (live.replicas, live.tenants) == (3, ARGS.tenants)


def test_tenants_are_replaced_whole() -> None:
    """So that one can be taken out as well."""
    live = with_live(ARGS, {"tenants": {"alice": {"weight": 3.0, "class": "batch"}}})

    assert live.tenants == {"alice": TenantSettings.model_validate({"weight": 3, "class": "batch"})}
    assert live.fairness == ARGS.fairness


@pytest.mark.parametrize(
    ("user_config", "says"),
    [
        ({"replicas": 5}, ("user_config.replicas", "cannot change while it runs", "fairness")),
        ({"fairness": {"policy": "luck"}}, ("user_config.fairness", "no policy 'luck'", "vtc")),
        ({"fairness": {"kwantum": 1}}, ("user_config.fairness.kwantum", "quantum")),
        ({"fairness": {"quantum": -1}}, ("user_config.fairness.quantum", "greater than 0")),
        ({"fairness": {"max_switches_per_s": 1}}, ("max_switches_per_s", "engines")),
        ({"fairness": "fcfs"}, ("user_config.fairness", "no fields")),
        (["fairness"], ("user_config", "no fields")),
        ({"tenants": {"a b": {}}}, ("user_config.tenants", "letters")),
        ({"tenants": {"alice": {"weight": 0}}}, ("user_config.tenants.alice.weight", "0")),
        ({"tenant_defaults": {"wait": 1}}, ("user_config.tenant_defaults.wait", "weight")),
    ],
)
def test_what_is_wrong_is_named(user_config: Any, says: tuple[str, ...]) -> None:
    """Where it stands, and what is allowed there."""
    with pytest.raises(LiveSettingsError) as caught:
        with_live(ARGS, user_config)

    assert all(part in str(caught.value) for part in says), str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tenants_file_and_tenants_exclude_each_other() -> None:
    """As they do under ``args``: the file is what changes then."""
    args = AppArgs(tenants_file=Path("/etc/tenants.yaml"))

    with pytest.raises(LiveSettingsError, match="tenants and tenants_file are both given"):
        with_live(args, {"tenants": {"alice": {"weight": 2.0}}})
