"""A pool's file: taken over whole or made anew, and for this user's one process alone."""

import os
import stat
from pathlib import Path

import pytest

from kv.errors import SharedPoolError
from kv.pool_file import (
    HEADER_BYTES,
    FileKind,
    NeighbourFile,
    PoolFile,
    fingerprint,
    kind_of,
    life_in,
)

WANTED = fingerprint("a model", 1)
NUM_BYTES = 100


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "file"


def left_behind(path: Path) -> None:
    """A file that an owner has filled with ones, and let go of."""
    file = PoolFile(path, WANTED, NUM_BYTES)
    file.content[:] = 1
    file.close()


def test_a_new_file_is_zeros_for_its_user_alone(path: Path) -> None:
    """It has the size that was asked for, and its pages are taken already."""
    file = PoolFile(path, WANTED, NUM_BYTES)

    assert (file.is_kept, file.is_refused) == (False, False)
    assert file.content.tolist() == [0] * NUM_BYTES
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_blocks * 512 >= NUM_BYTES


def test_what_is_there_is_kept_for_who_would_put_the_same_there(path: Path) -> None:
    """Equal fingerprint, equal size: the content is taken over."""
    left_behind(path)

    file = PoolFile(path, WANTED, NUM_BYTES)

    assert (file.is_kept, file.is_refused) == (True, False)
    assert file.content.tolist() == [1] * NUM_BYTES


@pytest.mark.parametrize(
    ("wanted", "num_bytes"),
    [(fingerprint("a model", 2), NUM_BYTES), (WANTED, NUM_BYTES + 1), (WANTED, NUM_BYTES - 1)],
    ids=["fingerprint", "longer", "shorter"],
)
def test_anything_else_is_refused_and_wiped(path: Path, wanted: bytes, num_bytes: int) -> None:
    """Nothing of the other content shines through, and it is told that there was some."""
    left_behind(path)

    file = PoolFile(path, wanted, num_bytes)

    assert (file.is_kept, file.is_refused) == (False, True)
    assert not file.content.any()


def test_who_reads_a_file_may_go_on_when_it_is_made_anew(path: Path) -> None:
    """What is mapped stays as it was: a file cut short would end its readers with a signal."""
    left_behind(path)
    reading = NeighbourFile(path, kind_of(path))

    PoolFile(path, fingerprint("a model", 2), NUM_BYTES)

    assert reading.content.tolist() == [1] * NUM_BYTES
    with pytest.raises(SharedPoolError, match="it is of another kind"):
        NeighbourFile(path, FileKind(HEADER_BYTES + NUM_BYTES, WANTED))


def test_a_file_is_read_as_its_owner_writes_it(path: Path) -> None:
    """And not written: it is mapped for reading alone."""
    file = PoolFile(path, WANTED, NUM_BYTES)
    reading = NeighbourFile(path, kind_of(path))
    lives = [reading.life]

    file.content[3] = 9
    file.name_life(12345)
    lives.append(reading.life)
    file.name_nobody()
    lives.append(reading.life)

    assert (reading.content[3], lives) == (9, [None, 12345, None])
    with pytest.raises(ValueError, match="read-only"):
        reading.content[3] = 1


def test_a_file_that_is_not_there_is_not_made_by_reading(path: Path) -> None:
    """Nor is one read that others can get at."""
    with pytest.raises(SharedPoolError, match="it cannot be opened"):
        kind_of(path)
    assert not path.exists()

    left_behind(path)
    kind = kind_of(path)
    path.chmod(0o640)
    with pytest.raises(SharedPoolError, match="others than this user can get at it"):
        NeighbourFile(path, kind)


def test_a_file_that_was_left_half_made_is_made_anew(path: Path) -> None:
    """Its size is right and its header is not written yet: it counts as something else."""
    path.touch(mode=0o600)
    os.truncate(path, NUM_BYTES + 4096)

    assert PoolFile(path, WANTED, NUM_BYTES).is_refused


def test_a_file_is_one_process_s_at_a_time(path: Path) -> None:
    """The second is refused, and leaves it as it is."""
    first = PoolFile(path, WANTED, NUM_BYTES)
    first.content[:] = 7

    with pytest.raises(SharedPoolError, match="another process still has it"):
        PoolFile(path, fingerprint("another model"), NUM_BYTES)

    assert set(first.content.tolist()) == {7}
    first.close()
    assert PoolFile(path, WANTED, NUM_BYTES).is_kept


def test_a_file_that_others_can_get_at_is_refused(path: Path, tmp_path: Path) -> None:
    """Be it readable by others, or a name that leads elsewhere."""
    left_behind(path)
    path.chmod(0o640)
    with pytest.raises(SharedPoolError, match="others than this user can get at it"):
        PoolFile(path, WANTED, NUM_BYTES)

    link = tmp_path / "link"
    link.symlink_to(path)
    with pytest.raises(SharedPoolError, match="it cannot be opened"):
        PoolFile(link, WANTED, NUM_BYTES)


def test_memory_that_cannot_be_had_is_refused_before_it_is_touched(path: Path) -> None:
    """Not with a signal at the first write to a page, and nothing is left taken."""
    with pytest.raises(SharedPoolError, match=r"\d+ bytes cannot be had"):
        PoolFile(path, WANTED, 2**52)

    assert path.stat().st_blocks == 0


def test_word_of_a_life_is_found_by_others(path: Path, tmp_path: Path) -> None:
    """None before there is a file, nothing before there was word."""
    assert life_in(path) is None
    file = PoolFile(path, WANTED, NUM_BYTES)
    assert life_in(path) == 0

    file.name_life(12345)

    assert life_in(path) == 12345
