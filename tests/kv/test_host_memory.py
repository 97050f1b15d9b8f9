"""How much host memory can be had."""

from pathlib import Path

import psutil
import pytest
import torch

from kv.errors import HostMemorySizeError
from kv.host_memory import GIB, allocate, check_fits, free_bytes


def test_more_than_the_machine_has_is_refused_with_what_fits() -> None:
    """The message says how much was free and how much of that may be taken."""
    with pytest.raises(
        HostMemorySizeError, match=r"host_kv_gib is 64: .*10.0 GiB.*at most 9.5 fit"
    ):
        check_fits(64, 64 * GIB, free=10 * GIB)


def test_what_fits_is_said_in_the_settings_terms() -> None:
    """A worker that takes half of the setting fits when twice as much is asked for."""
    check_fits(16, 8 * GIB, free=10 * GIB)
    with pytest.raises(HostMemorySizeError, match=r"host_kv_gib is 32: .*at most 19.0 fit"):
        check_fits(32, 16 * GIB, free=10 * GIB)


def test_a_containers_limit_counts(tmp_path: Path) -> None:
    """In a container, what is free is what its limit leaves, dropping files it can drop."""
    (tmp_path / "memory.max").write_text("1000000\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("anon 500000\ninactive_file 300000\n")

    assert free_bytes(tmp_path) == 400_000


def test_without_a_limit_the_machine_counts(tmp_path: Path) -> None:
    """Where no container limits it, what is free is what the machine has."""
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "memory.current").write_text("900000\n")
    (tmp_path / "memory.stat").write_text("")

    assert 0 < free_bytes(tmp_path) <= psutil.virtual_memory().total


def test_host_rows_match_the_devices() -> None:
    """Each layer gets as many host rows as asked for, as long as its own."""
    device = {"a": torch.zeros((4, 16), dtype=torch.uint8)}

    rows = allocate(device, num_host_blocks=10, is_pinned=False)

    assert rows["a"].shape == (10, 16)
