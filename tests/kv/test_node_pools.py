"""Pools in shared memory: who gets which, who can get at them, and what crashed runs leave."""

import logging
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path, PosixPath
from typing import Any

import pytest

from kv import node_pools
from kv.errors import SharedPoolError
from kv.node_pools import application_folder, claim_pool, life_of, remove_leftovers

ROOT = str(Path(__file__).parents[2])
ANOTHER_LIFE = f"{os.getpid()}-1"  # as if this process's number had been another one's before
OWNER_PROGRAM = """
import sys
from pathlib import Path
from kv.node_pools import claim_pool
print(claim_pool(Path(sys.argv[1]), "kind").folder, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def pools(tmp_path: Path) -> Path:
    """The pools of an application in a run that goes on: this process's life."""
    return application_folder(life_of(os.getpid()), "app", tmp_path)


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    # Libraries that configure logging anew switch off whatever loggers there are.
    logging.getLogger(node_pools.__name__).disabled = False
    caplog.set_level(logging.WARNING, logger=node_pools.__name__)
    return caplog


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def owner_in_another_process(pools: Path) -> tuple[subprocess.Popen[str], Path]:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER_PROGRAM, str(pools)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert owner.stdout is not None
    return owner, Path(owner.stdout.readline().strip())


def killed_owners_pool(pools: Path) -> Path:
    owner, folder = owner_in_another_process(pools)
    with owner:
        owner.send_signal(signal.SIGKILL)
    return folder


def test_a_pool_of_a_killed_process_is_its_successors(pools: Path) -> None:
    """While its owner lives nobody else gets it; from the moment of its death on somebody does."""
    owner, folder = owner_in_another_process(pools)
    with owner:
        neighbour = claim_pool(pools, "kind")
        owner.send_signal(signal.SIGKILL)

    successor = claim_pool(pools, "kind")

    assert neighbour.folder != folder
    assert (successor.folder, successor.num_refused) == (folder, 0)


def test_two_successors_take_two_pools(pools: Path) -> None:
    """Whoever comes after two crashes finds one of the pools, and leaves the other."""
    left = {killed_owners_pool(pools), killed_owners_pool(pools)}
    assert len(left) == 1  # the second took the first's over

    other = claim_pool(pools, "kind")
    assert {other.folder} == left
    assert claim_pool(pools, "kind").folder not in left


def test_a_pool_that_is_of_no_use_is_removed_and_said_once(
    pools: Path, warnings: pytest.LogCaptureFixture
) -> None:
    """A pool that was made for other engine arguments goes as soon as it has no owner."""
    left = killed_owners_pool(pools)

    first, second = claim_pool(pools, "other"), claim_pool(pools, "other")

    assert not left.exists()
    assert (first.num_refused, second.num_refused) == (1, 0)
    [record] = warnings.records
    assert "Removed 0.0 MiB of shared memory of other engine arguments" in record.message


def test_a_removed_pool_is_gone(pools: Path) -> None:
    """Nothing of it is left, and a new owner begins with a new one."""
    claim = claim_pool(pools, "kind")
    (claim.folder / "rank-0").write_bytes(b"KV")

    claim.remove()

    assert list(pools.iterdir()) == []
    assert claim_pool(pools, "kind").folder != claim.folder


@pytest.mark.parametrize("other", ["application", "run"])
def test_applications_of_one_name_share_only_within_a_run(
    pools: Path, tmp_path: Path, other: str
) -> None:
    """Neither another application of the run nor one of the same name in another run gets it."""
    left = killed_owners_pool(pools)
    run = life_of(os.getppid()) if other == "run" else life_of(os.getpid())
    name = "app" if other == "run" else "other/app"

    claim = claim_pool(application_folder(run, name, tmp_path), "kind")

    assert claim.folder.parent != left.parent
    assert left.exists()


def test_what_a_crashed_run_has_left_is_removed_and_said_once(
    tmp_path: Path, pools: Path, warnings: pytest.LogCaptureFixture
) -> None:
    """The next engine that starts on the node does it, whatever its application."""
    over = application_folder(ANOTHER_LIFE, "app", tmp_path)
    left = killed_owners_pool(over)
    assert left.exists()

    claim_pool(pools, "kind")
    claim_pool(pools, "kind")

    assert not over.parent.exists()
    [record] = warnings.records
    assert "of a run that is over" in record.message


def test_a_pool_with_an_owner_outlives_its_run(tmp_path: Path) -> None:
    """An engine that has not heard of its run's end yet keeps what it works with."""
    over = application_folder(ANOTHER_LIFE, "app", tmp_path)
    claim = claim_pool(over, "kind")

    remove_leftovers(tmp_path)
    assert claim.folder.exists()

    claim.remove()
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_an_engine_that_starts_while_another_sweeps_has_its_pool(
    pools: Path, tmp_path: Path
) -> None:
    """An empty user's folder goes with the leftovers, also one that an engine has just made."""
    swept: list[Path] = []

    class Swept(PosixPath):
        def mkdir(self, *args: Any, **more: Any) -> None:
            super().mkdir(*args, **more)
            if self == pools.parents[1] and not swept:
                swept.append(self)
                remove_leftovers(tmp_path)
                assert not self.exists()

    claim = claim_pool(Swept(pools), "kind")

    assert swept
    assert claim.folder.parent == pools
    assert claim.folder.is_dir()


def test_nobody_else_can_look_in(pools: Path) -> None:
    """Each folder is its user's alone, and so is the lock."""
    claim = claim_pool(pools, "kind")

    folders = [claim.folder, *claim.folder.parents][:4]
    assert {mode(folder) for folder in folders} == {0o700}
    assert mode(claim.folder / "owner") == 0o600


def test_a_folder_that_others_can_get_at_is_refused(pools: Path, tmp_path: Path) -> None:
    """Be it open to all, or somebody else's under a name that leads there."""
    user = pools.parents[1]
    user.mkdir(mode=0o700)
    user.chmod(0o750)
    with pytest.raises(SharedPoolError, match="others than this user can get at it"):
        claim_pool(pools, "kind")

    user.rmdir()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    user.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SharedPoolError, match="others than this user can get at it"):
        claim_pool(pools, "kind")


def test_a_node_without_shared_memory_is_told_so(tmp_path: Path) -> None:
    """One sentence that names the place."""
    pools = application_folder("1-1", "app", tmp_path / "none")

    with pytest.raises(SharedPoolError, match=r"none/fastswitch-\d+: no folder can be made"):
        claim_pool(pools, "kind")
