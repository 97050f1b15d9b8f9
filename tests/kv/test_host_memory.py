"""How much host memory can be had."""

from mmap import PAGESIZE, mmap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch

from kv.errors import HostMemorySizeError
from kv.host_memory import GIB, allocate, check_fits, free_bytes, pin, rows_in


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


class FakeDriver:
    """Pins pieces up to a limit."""

    def __init__(self, most_bytes: int) -> None:
        self._left = most_bytes
        self.pinned: dict[int, int] = {}

    def cudaHostRegister(self, start: int, num_bytes: int, _flags: int) -> Any:  # noqa: N802
        is_refused = num_bytes > self._left
        if not is_refused:
            self._left -= num_bytes
            self.pinned[start] = num_bytes
        return SimpleNamespace(value=int(is_refused))

    def cudaHostUnregister(self, start: int) -> None:  # noqa: N802
        self._left += self.pinned.pop(start)


@pytest.mark.parametrize(("width", "num_pieces"), [(PAGESIZE, 4), (PAGESIZE // 2 + 64, 1)])
def test_each_layer_is_pinned_by_itself(
    monkeypatch: pytest.MonkeyPatch, width: int, num_pieces: int
) -> None:
    """Unless it shares a page with the next one: a page cannot be pinned twice."""
    driver = FakeDriver(most_bytes=1 << 30)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    memory = torch.from_numpy(np.frombuffer(mmap(-1, 8 * 4 * width + PAGESIZE), dtype=np.uint8))
    device = {str(layer): torch.zeros((1, width), dtype=torch.uint8) for layer in range(4)}
    rows = rows_in(memory, device, num_host_blocks=3)

    pin(rows.values(), wanted_gib=1)

    assert len(driver.pinned) == num_pieces
    assert sum(driver.pinned.values()) == 4 * 3 * width


def test_what_the_driver_will_not_pin_is_refused_with_what_it_would(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And what was pinned until then is let go."""
    driver = FakeDriver(most_bytes=5 * 4096)
    monkeypatch.setattr(torch.cuda, "cudart", lambda: driver)
    rows = allocate({str(n): torch.zeros((1, 4096), dtype=torch.uint8) for n in range(4)}, 2)

    with pytest.raises(HostMemorySizeError, match=r"host_kv_gib is 8: .*more than 4.0 GiB"):
        pin(rows.values(), wanted_gib=8)

    assert driver.pinned == {}


def test_host_rows_match_the_devices() -> None:
    """Each layer gets as many host rows as asked for, as long as its own."""
    device = {"a": torch.zeros((4, 16), dtype=torch.uint8)}

    rows = allocate(device, num_host_blocks=10)

    assert rows["a"].shape == (10, 16)
