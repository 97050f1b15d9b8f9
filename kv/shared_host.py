"""Host memory in a pool of the node: opened by planner and workers, each its own file.

Owns what lies where in a pool's files, and whether what an owner before has left may be used.
A worker's file has its landings and its part of every block, the planner's the index. A worker
leaves word in its file of the owner's life for which it has opened it; the planner goes without
the pool if one has not. Until then nobody answers for what the file holds, so that neighbours
leave it alone.
"""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from kv.errors import SharedPoolError
from kv.host_memory import GIB, check_fits, free_bytes, rows_bytes, rows_in
from kv.memory_order import keep_order
from kv.neighbour_copier import NeighbourCopier
from kv.neighbours import PoolShape
from kv.pool_file import HEADER_BYTES, PoolFile, fingerprint, life_in
from kv.pool_index import Landings, PoolIndex, index_bytes, landed_stamps, landing_bytes
from kv.settings import PoolPlace
from kv.swap_plan import BlockCopies

_PAGE_BYTES = 4096
_INDEX = "index"


class SharedRows:
    """A worker's part of a pool: rows as of ``kv.host_memory.allocate``, and what landed there."""

    def __init__(
        self,
        place: PoolPlace,
        rank: int,
        facts: bytes,
        device_rows: Mapping[str, torch.Tensor],
        num_host_blocks: int,
        host_kv_gib: float,
    ) -> None:
        """``facts`` are all that KV depends on beside where its bytes lie.

        Raises:
            SharedPoolError: there is no room in shared memory, or the pool cannot be had.
            HostMemorySizeError: the machine has too little memory.
        """
        self._life = place.life
        self._num_blocks = num_host_blocks
        widths = [(name, rows.shape[1]) for name, rows in device_rows.items()]
        start = _whole_pages(landing_bytes(num_host_blocks))
        num_bytes = start + rows_bytes(device_rows, num_host_blocks)
        path = _rank_path(place.folder, rank)
        already = _taken_bytes(path)
        check_fits(host_kv_gib, num_bytes, free_bytes() + already)
        _check_has_room(place.folder, num_bytes, already, host_kv_gib)
        self._file = PoolFile(path, fingerprint(facts, widths, num_host_blocks), num_bytes)
        self._file.name_nobody()
        self._landings = Landings(self._file.content[: landing_bytes(num_host_blocks)])
        memory = torch.from_numpy(self._file.content[start:])
        self.rows = rows_in(memory, device_rows, num_host_blocks)
        own_rows = {name: rows.numpy() for name, rows in self.rows.items()}
        self._neighbours = NeighbourCopier(place.folder / _INDEX, path, start, own_rows)

    @contextmanager
    def trial(self, num_blocks: int) -> Iterator[None]:
        """Let the first blocks be written; at the end they are as they were, also to be found."""
        blocks = range(min(num_blocks, self._num_blocks))
        stamps = self._landings.set_aside(blocks)
        before = {name: rows[: len(blocks)].clone() for name, rows in self.rows.items()}
        yield
        for name, rows in self.rows.items():
            rows[: len(blocks)] = before[name]
        self._landings.note(blocks, stamps)

    def declare_ready(self) -> None:
        """From now on copies land here."""
        self._file.name_life(self._life)

    def note(self, copies: BlockCopies) -> None:
        keep_order()  # a neighbour that sees the stamp has to see the bytes
        self._landings.note(copies.host_blocks, copies.stamp)

    def bring(self, copies: BlockCopies) -> list[int]:
        """Copy a neighbour's blocks here; those of ours that did not get what was meant for them.

        The others have landed.
        """
        missed = self._neighbours.copy(copies)
        keep_order()
        self._landings.note(sorted({*copies.host_blocks}.difference(missed)), copies.stamp)
        return missed

    def close(self) -> None:
        self._file.close()


@dataclass(frozen=True, slots=True)
class OpenedIndex:
    """A pool as its planner finds it: ``held`` are blocks and keys, the longest unused first."""

    index: PoolIndex
    held: list[tuple[int, bytes]]
    is_refused: bool  # something else was there, of no use
    file: PoolFile
    shape: PoolShape


def open_index(
    place: PoolPlace, facts: bytes, *, num_ranks: int, num_host_blocks: int, key_bytes: int
) -> OpenedIndex | None:
    """The index of a pool; None if a worker has not opened its part, and has said why.

    Raises:
        SharedPoolError: the pool cannot be had.
    """
    paths = [_rank_path(place.folder, rank) for rank in range(num_ranks)]
    if any(life_in(path) != place.life for path in paths):
        return None
    wanted = fingerprint(facts, num_ranks, num_host_blocks, key_bytes)
    file = PoolFile(place.folder / _INDEX, wanted, index_bytes(num_host_blocks, key_bytes))
    index = PoolIndex(file.content, num_host_blocks, key_bytes)
    held = index.take_over([landed_stamps(path, num_host_blocks) for path in paths])
    names = [path.name for path in paths]
    shape = PoolShape(place.folder, _INDEX, names, num_host_blocks, key_bytes)
    return OpenedIndex(index, held, file.is_refused, file, shape)


def room(folder: Path) -> int:
    """Bytes of shared memory that are free where a pool lies."""
    return shutil.disk_usage(folder).free


def taken_bytes(folder: Path) -> int:
    """Bytes of memory that the files of a pool take already."""
    return sum(_taken_bytes(path) for path in folder.iterdir()) if folder.exists() else 0


def _rank_path(folder: Path, rank: int) -> Path:
    return folder / f"rank-{rank}"


def _whole_pages(num_bytes: int) -> int:
    return -(-num_bytes // _PAGE_BYTES) * _PAGE_BYTES


def _taken_bytes(path: Path) -> int:
    return path.stat().st_blocks * 512 if path.exists() else 0


def _check_has_room(folder: Path, num_bytes: int, already: int, host_kv_gib: float) -> None:
    free = max(room(folder) + already - HEADER_BYTES, 0)
    if num_bytes > free:
        fitting_gib = host_kv_gib * free / num_bytes
        problem = (
            f"{free / GIB:.3g} GiB of shared memory are free, so host_kv_gib could be at most "
            f"{fitting_gib:.3g}, not {host_kv_gib:g}"
        )
        raise SharedPoolError(str(folder), problem)
