"""Reading a pool beside its owner: what is taken for whole is, whatever becomes of the owner."""

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from itertools import count
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv.neighbour_copier import NeighbourCopier
from kv.neighbours import Neighbours
from kv.pool_file import NeighbourFile, kind_of
from kv.pool_index import NeighbourIndex, stamps_in
from kv.swap_plan import BlockCopies, Direction, NeighbourBlocks, Urgency
from tests.kv import pool_program
from tests.kv.pool_owner import (
    KEY_BYTES,
    LAYERS,
    NUM_BLOCKS,
    Owner,
    Steered,
    content,
    index_in,
    key,
    rows_in,
)

OWN, THEIRS = "kind-own", "kind-theirs"
ROOT = str(Path(__file__).parents[2])


class Baton:
    """Held by one of two threads at a time; ``schedule`` says at which turns it is passed on."""

    def __init__(self, schedule: Sequence[bool]) -> None:
        self._schedule = iter(schedule)
        self._comes = {name: threading.Semaphore(0) for name in ("owner", "reader")}
        self._is_alone = True

    def begin(self, owns: Callable[[], None], reads: Callable[[], None]) -> None:
        """Do both, the one beside the other; raises what either has raised."""
        failures: list[BaseException] = []

        def carefully(work: Callable[[], None]) -> None:
            try:
                with self._held():
                    work()
            except BaseException as error:  # noqa: BLE001  (told by the test's own thread)
                failures.append(error)

        self._is_alone = False
        threads = [
            threading.Thread(target=carefully, args=[work], name=name)
            for name, work in (("owner", owns), ("reader", reads))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failures:
            raise failures[0]

    def turn(self) -> None:
        """Here somebody else may go on."""
        if not self._is_alone and next(self._schedule, False):
            self._pass(threading.current_thread().name)

    @contextmanager
    def _held(self) -> Iterator[None]:
        """Nothing is done without it, and at the end the other one has it for good."""
        name = threading.current_thread().name
        if name == "reader":
            assert self._comes[name].acquire(timeout=30)
        try:
            yield
        finally:
            self._is_alone = True
            self._comes[self._other(name)].release()

    def _pass(self, name: str) -> None:
        self._comes[self._other(name)].release()
        assert self._comes[name].acquire(timeout=30)

    @staticmethod
    def _other(name: str) -> str:
        return "owner" if name == "reader" else "reader"


class Reader:
    """An engine beside it: looks at its tables, copies what it finds, and asks what came whole."""

    def __init__(self, folder: Path, turn: Callable[[], None] = lambda: None) -> None:
        (folder / OWN).mkdir()
        self._theirs, self._turn = folder / THEIRS, turn
        own = rows_in(folder / OWN, 1)
        own.declare_ready()
        index_in(folder / OWN, 1)
        self._kinds = [kind_of(folder / OWN / name) for name in ("index", "rank-0")]
        self.rows = {name: rows.numpy() for name, rows in own.rows.items()}
        self._copier: NeighbourCopier = own._neighbours
        steered = {name: Steered(rows, turn) for name, rows in self.rows.items()}
        setattr(self._copier, "_own_rows", steered)  # noqa: B010  (no rows of numpy's)

    def read(self) -> dict[bytes, dict[str, bytes]]:
        """The bytes that are taken for those of a key, layer by layer."""
        plan = self.plan()
        self._turn()
        return {} if plan is None else self.copy(*plan)

    def copy(self, keys: list[bytes], source: NeighbourBlocks) -> dict[bytes, dict[str, bytes]]:
        """The same for what was found before."""
        targets = list(reversed(range(len(keys))))
        copies = BlockCopies(Direction.ACROSS, Urgency.REQUEST, [], targets, source=source)
        missed = self._copier.copy(copies)
        return {
            one: {name: rows[target].tobytes() for name, rows in self.rows.items()}
            for one, target in zip(keys, targets, strict=True)
            if target not in missed
        }

    def plan(self) -> tuple[list[bytes], NeighbourBlocks] | None:
        names = ("index", "rank-0")
        index, rank = (
            NeighbourFile(self._theirs / name, kind)
            for name, kind in zip(names, self._kinds, strict=True)
        )
        life = rank.life
        self._turn()
        if life is None:
            return None
        table = NeighbourIndex(index.content, NUM_BLOCKS, KEY_BYTES)
        stamps = table.whole(self._Turning(stamps_in(rank.content, NUM_BLOCKS), self._turn))
        self._turn()
        blocks = np.flatnonzero(stamps)
        keys = table.keys(blocks, stamps[blocks])
        good = [
            (one, block)
            for one, block in zip(keys, blocks.tolist(), strict=True)
            if one is not None
        ]
        found = [block for _, block in good]
        source = NeighbourBlocks(THEIRS, life, found, stamps[found].tolist())
        return [one for one, _ in good], source

    class _Turning(list[np.ndarray]):
        """Tables that are looked at one after another."""

        def __init__(self, table: np.ndarray, turn: Callable[[], None]) -> None:
            super().__init__([table])
            self._turn = turn

        def __iter__(self) -> Iterator[np.ndarray]:
            for table in super().__iter__():
                self._turn()
                yield table


def check(read: dict[bytes, dict[str, bytes]]) -> None:
    for one, layers in read.items():
        assert layers == {name: content(one, name).tobytes() for name in LAYERS}


NUMBERS = st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True)
DEEDS = st.one_of(
    st.tuples(st.just("put"), NUMBERS),
    st.tuples(st.just("forget"), NUMBERS),
    st.tuples(st.just("land"), st.just(())),
    st.tuples(st.just("land"), st.just(())),
    st.tuples(st.just("be_followed"), st.just(())),
)


@settings(max_examples=100)
@given(
    deeds=st.lists(DEEDS, min_size=4, max_size=10),
    schedule=st.lists(st.booleans(), min_size=20, max_size=300),
)
def test_what_is_taken_for_whole_has_the_bytes_of_its_key(
    deeds: list[tuple[str, Any]], schedule: list[bool]
) -> None:
    """However the owner's stores and the reader's steps fall, trial and succession included."""
    baton = Baton(schedule)
    with TemporaryDirectory(dir="/dev/shm") as folder:
        owner, reader = Owner(Path(folder) / THEIRS, baton.turn), Reader(Path(folder), baton.turn)
        owner.put([1, 2])
        owner.land()

        def own() -> None:
            for deed, arguments in deeds:
                getattr(owner, deed)(*[arguments] if arguments else [])

        def read() -> None:
            for _ in range(3):
                check(reader.read())

        baton.begin(own, read)
        while owner.pending:
            owner.land()
        at_rest = reader.read()
        check(at_rest)
        assert at_rest.keys() == {
            one for one in map(key, range(6)) if owner.cache.find(one) is not None
        }


def test_a_process_that_goes_on_copying_is_read_beside(tmp_path: Path, seed: int) -> None:
    """It writes over its blocks all the time; what was not missed has the bytes of its key."""
    choose = Random(seed)
    for name in (OWN, THEIRS):
        (tmp_path / name).mkdir()
    rows, opened = pool_program.open_pool(tmp_path / OWN, life=1)
    keys = [sha256(b"%d" % number).digest() for number in range(pool_program.NUM_KEYS)]
    copying = subprocess.Popen(
        [sys.executable, "-m", "tests.kv.pool_program", str(tmp_path / THEIRS)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
    )
    num_whole = 0
    with copying:
        assert copying.stdout is not None
        assert copying.stdout.readline()
        neighbours = Neighbours(opened.shape, clock=count().__next__)
        while num_whole < 100:
            neighbours.look()
            found = [(one, neighbours.find(one)) for one in choose.sample(keys, 8)]
            wanted = {one: source for one, source in found if source is not None}
            source = NeighbourBlocks(
                THEIRS,
                1,
                [each.block for each in wanted.values()],
                [each.stamp for each in wanted.values()],
            )
            targets = [*range(len(wanted))]
            missed = rows.bring(
                BlockCopies(Direction.ACROSS, Urgency.REQUEST, [], targets, source=source)
            )
            num_whole += len(wanted) - len(missed)
            for target, one in enumerate(wanted):
                for layer in rows.rows.values():
                    is_right = (layer[target].numpy() == pool_program.content(one)).all()
                    assert is_right or target in missed
        copying.kill()


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    """It has the KV of two keys."""
    owner = Owner(tmp_path / THEIRS)
    owner.put([1, 2])
    owner.land()
    return owner


def test_only_what_was_written_over_since_it_was_found_is_missed(
    owner: Owner, tmp_path: Path
) -> None:
    """Be it that its next content has not even begun to be copied."""
    reader = Reader(tmp_path)
    plan = reader.plan()
    assert plan is not None

    owner.forget([1])

    read = reader.copy(*plan)
    check(read)
    assert read.keys() == {key(2)}


def test_nothing_found_before_a_succession_is_taken_for_whole(owner: Owner, tmp_path: Path) -> None:
    """Whoever follows may have tried the memory, and left no other trace; it is found again."""
    reader = Reader(tmp_path)
    plan = reader.plan()
    assert plan is not None

    owner.be_followed()

    assert reader.copy(*plan) == {}
    assert reader.read().keys() == {key(1), key(2)}


def test_a_pool_that_has_gone_is_missed(owner: Owner, tmp_path: Path) -> None:
    """Its engine was asked to end after its blocks had been found."""
    reader = Reader(tmp_path)
    plan = reader.plan()
    assert plan is not None

    shutil.rmtree(tmp_path / THEIRS)

    assert reader.copy(*plan) == {}
