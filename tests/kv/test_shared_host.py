"""A pool's files together: what a worker that is killed leaves, and what is refused."""

import signal
import subprocess
import sys
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from kv import shared_host
from kv.errors import HostMemorySizeError, SharedPoolError
from kv.settings import PoolPlace
from kv.shared_host import OpenedIndex, SharedRows, open_index
from kv.swap_plan import BlockCopies, Direction, Urgency
from tests.kv.pool_program import content, open_pool

ROOT = str(Path(__file__).parents[2])
NUM_HOST_BLOCKS, KEY_BYTES = 8, 32
FACTS = b"a model"
KEYS = [bytes([number]) * KEY_BYTES for number in range(NUM_HOST_BLOCKS)]


def rows_of(folder: Path, rank: int = 0, life: int = 1, **changes: Any) -> SharedRows:
    device = {name: torch.zeros((4, 16), dtype=torch.uint8) for name in ("first", "second")}
    return SharedRows(
        PoolPlace(folder, life),
        rank,
        changes.get("facts", FACTS),
        device,
        NUM_HOST_BLOCKS,
        changes.get("host_kv_gib", 1.0),
    )


def opened(folder: Path, life: int = 1, num_ranks: int = 1) -> OpenedIndex:
    found = open_planner(folder, life, num_ranks)
    assert found is not None
    return found


def open_planner(folder: Path, life: int = 1, num_ranks: int = 1) -> OpenedIndex | None:
    return open_index(
        PoolPlace(folder, life),
        FACTS,
        num_ranks=num_ranks,
        num_host_blocks=NUM_HOST_BLOCKS,
        key_bytes=KEY_BYTES,
    )


def landed(blocks: list[int], stamp: int) -> BlockCopies:
    return BlockCopies(Direction.OUT, Urgency.NOBODY, [0] * len(blocks), blocks, stamp=stamp)


def left_behind(folder: Path, blocks: list[int]) -> None:
    """A pool with one worker that holds something in ``blocks``, and whose owner has died."""
    rows = rows_of(folder)
    rows.declare_ready()
    index = opened(folder)
    index.index.enter(blocks, KEYS[: len(blocks)], 100)
    for block in blocks:
        for layer in rows.rows.values():
            layer[block] = block + 1
    rows.note(landed(blocks, 100))
    rows.close()
    index.file.close()


def test_a_process_killed_in_mid_copy_leaves_whole_blocks_only(tmp_path: Path, seed: int) -> None:
    """Killed again and again, at any moment: what its successor finds has the bytes of its key."""
    choose = Random(seed)
    num_found = 0
    for life in range(4):
        copying = subprocess.Popen(
            [sys.executable, "-m", "tests.kv.pool_program", str(tmp_path)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
        )
        with copying:
            assert copying.stdout is not None
            for _ in range(choose.randint(2, 40)):
                assert copying.stdout.readline()
            copying.send_signal(signal.SIGKILL)

        rows, found = open_pool(tmp_path, life=2 + life)
        num_found += len(found.held)
        assert not found.is_refused
        for block, key in found.held:
            for layer in rows.rows.values():
                assert (layer[block].numpy() == content(key)).all()
        rows.close()
        found.file.close()
    assert num_found > 0


def test_a_successor_finds_keys_and_bytes_where_they_were(tmp_path: Path) -> None:
    """Under the keys of before, in the same blocks, in every layer."""
    left_behind(tmp_path, [5, 2])

    rows = rows_of(tmp_path, life=2)
    rows.declare_ready()
    index = opened(tmp_path, life=2)

    assert sorted(index.held) == [(2, KEYS[1]), (5, KEYS[0])]
    assert all((layer[5] == 6).all() and (layer[2] == 3).all() for layer in rows.rows.values())


def test_blocks_that_are_written_by_way_of_trial_are_not_found(tmp_path: Path) -> None:
    """A crash in the middle of the trial costs these, and no others."""
    left_behind(tmp_path, [0, 7])
    rows = rows_of(tmp_path, life=2)
    rows.declare_ready()

    with rows.trial(3):
        assert held_after(tmp_path) == [(7, KEYS[1])]


def test_blocks_are_as_they_were_after_their_trial(tmp_path: Path) -> None:
    """Found again, with their bytes in every layer."""
    left_behind(tmp_path, [0, 7])
    rows = rows_of(tmp_path, life=2)

    with rows.trial(3):
        for layer in rows.rows.values():
            layer[:3] = 99
    rows.declare_ready()

    assert sorted(held_after(tmp_path)) == [(0, KEYS[0]), (7, KEYS[1])]
    assert all((layer[0] == 1).all() for layer in rows.rows.values())


def held_after(folder: Path) -> list[tuple[int, bytes]]:
    """What a second life's planner finds."""
    index = opened(folder, life=2)
    index.file.close()
    return index.held


def test_kv_of_another_kind_is_refused(tmp_path: Path) -> None:
    """The worker begins with nothing, and so does the planner."""
    left_behind(tmp_path, [3])

    rows = rows_of(tmp_path, life=2, facts=b"another model")
    rows.declare_ready()

    assert not any(layer.any() for layer in rows.rows.values())
    assert held_after(tmp_path) == []


def test_every_worker_must_be_there(tmp_path: Path) -> None:
    """A planner whose worker has memory of its own finds nothing in what the last one left."""
    for rank in range(2):
        rows_of(tmp_path, rank).declare_ready()
    assert opened(tmp_path, num_ranks=2).held == []

    assert open_planner(tmp_path, life=2, num_ranks=2) is None
    assert open_planner(tmp_path, num_ranks=3) is None


def test_too_little_shared_memory_is_told_with_what_fits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is taken of it."""
    num_bytes = 4096 + NUM_HOST_BLOCKS * 32
    monkeypatch.setattr(shared_host, "room", lambda _: 4096 + num_bytes // 2)

    with pytest.raises(SharedPoolError, match=r"host_kv_gib could be at most 0.5, not 1"):
        rows_of(tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_more_than_the_machine_has_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory of the engine's own would not be there either."""
    monkeypatch.setattr(shared_host, "free_bytes", lambda: 100)

    with pytest.raises(HostMemorySizeError, match="host_kv_gib is 1"):
        rows_of(tmp_path)
