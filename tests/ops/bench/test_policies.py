"""`bench policies` shows the same load under each policy."""

from argparse import ArgumentParser, Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import psutil
import pytest
from rich.console import Console

from ops.bench import policies
from ops.bench.phase import Phase
from ops.bench.plot import plot_policy
from ops.bench.policies import (
    BURSTY,
    FLOOD,
    STEADY,
    TENANTS,
    courses,
    make_load,
    summarise,
    table,
    waits_s,
)
from ops.bench.server import Server
from ops.bench.tenant_load import Answer, TenantLoadResult
from scheduler.policies.catalogue import POLICIES
from tests.ops.bench.fleet_glances import glance

SERVER = Server("ours", 8000, "m", 2048, cast(psutil.Process, None))
ANSWERS = [
    Answer(STEADY, 0.0, [0.1], 100, 200),
    Answer(FLOOD, 0.0, [4.0], 300, 200),
    Answer(FLOOD, 0.0, [], None, None),
    Answer(BURSTY, 2.0, [2.5], 100, 200),
]
GLANCES = [
    glance(0.0, {STEADY: 50.0}),
    glance(5.0, {STEADY: 100.0, FLOOD: 400.0}),
    glance(10.0, {STEADY: 150.0, FLOOD: 700.0, BURSTY: 200.0}),
]
PHASE = Phase(10.0, TenantLoadResult(0.0, 12.0, ANSWERS), GLANCES)


def parse(*arguments: str) -> Namespace:
    parser = ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    policies.add_arguments(parser)
    return parser.parse_args(arguments)


def test_all_policies_unless_some_are_named() -> None:
    """Every one that there is, the two traces too."""
    assert parse().policies == tuple(POLICIES)
    assert parse("--policies", "fcfs,vtc").policies == ("fcfs", "vtc")


def test_the_load_is_the_same_for_every_policy() -> None:
    """Steady and bursty come in time, the flood is there from the begin."""
    options = parse("--max-num-seqs", "4", "--duration-s", "20")
    load = make_load(SERVER, options)
    assert load == make_load(SERVER, options)
    [flood] = load.backlogs
    assert (flood.tenant, flood.starts_s) == (FLOOD, [0.0] * 32)
    assert {arrival.tenant for arrival in load.arrivals} == {STEADY, BURSTY}
    assert sum(arrival.tenant == BURSTY for arrival in load.arrivals) == 4 * 4
    assert load.headers[BURSTY] == {"X-Service-Class": "batch"}


def test_a_policys_numbers_are_by_tenant() -> None:
    """Service since the load began; the unanswered wait until its end."""
    found = summarise(PHASE)
    assert found["tenants"][STEADY]["service"] == 100
    assert found["tenants"][FLOOD]["service"] == 700
    assert found["tenants"][FLOOD]["unanswered"] == 1
    assert found["tenants"][FLOOD]["ttft_ms"]["p50"] == 8000
    assert found["rejected"] == 0
    assert found["running"] == 4


def test_courses_begin_at_nought() -> None:
    """A tenant that comes later stays there until it does."""
    assert courses(PHASE) == {
        STEADY: [(0.0, 0.0), (5.0, 50.0), (10.0, 100.0)],
        FLOOD: [(0.0, 0.0), (5.0, 400.0), (10.0, 700.0)],
        BURSTY: [(0.0, 0.0), (5.0, 0.0), (10.0, 200.0)],
    }


def test_the_picture_and_the_table_show_every_tenant(tmp_path: Path) -> None:
    """A picture per policy, a row per policy."""
    plot_policy("vtc", courses(PHASE), waits_s(PHASE), tmp_path / "policy_vtc.png")
    assert (tmp_path / "policy_vtc.png").read_bytes().startswith(b"\x89PNG")
    console = Console(record=True, width=180)
    console.print(table({"policies": {"vtc": summarise(PHASE)}}))
    shown = console.export_text()
    assert all(tenant in shown for tenant in TENANTS)
    assert "70%" in shown


@pytest.mark.parametrize(
    "arguments", [("--policies", "fairest"), ("--duration-s", "0"), ("--policies", "vtc,vtc")]
)
def test_wrong_arguments_are_wrong_usage(
    arguments: Sequence[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2 and the argument by its name."""
    with pytest.raises(SystemExit) as caught:
        parse(*arguments)
    assert caught.value.code == 2
    assert arguments[0] in capsys.readouterr().err
