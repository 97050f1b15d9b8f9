"""What an engine knows of its neighbours' pools: what is there now, or was a moment ago."""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kv.neighbours import LOOK_EVERY_S, Neighbours, PoolShape
from tests.kv.pool_owner import KEY_BYTES, NUM_BLOCKS, Owner, index_in, key, rows_in

NUMBERS = st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True)
DEEDS = st.one_of(
    st.tuples(st.sampled_from(["put", "forget"]), NUMBERS),
    st.tuples(st.sampled_from(["land", "be_followed"]), st.just(())),
)


class Clock:
    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class Engine:
    """One that looks at its neighbours; its own pool holds nothing."""

    def __init__(self, folder: Path) -> None:
        self.pool = folder / "kind-own"
        if not self.pool.exists():
            self.pool.mkdir()
            rows_in(self.pool, 1).declare_ready()
            index_in(self.pool, 1)
        self.clock = Clock()
        shape = PoolShape(self.pool, "index", ["rank-0"], NUM_BLOCKS, KEY_BYTES)
        self.neighbours = Neighbours(shape, self.clock)

    def finds(self) -> dict[int, str]:
        """By key's number, in which pool; having looked just now."""
        self.clock.now_s += LOOK_EVERY_S
        self.neighbours.look()
        found = {number: self.neighbours.find(key(number)) for number in range(6)}
        return {number: one.pool for number, one in found.items() if one is not None}


def neighbour(folder: Path, *numbers: int) -> Owner:
    """An engine with the KV of these keys."""
    owner = Owner(folder)
    owner.put(numbers)
    owner.land()
    return owner


def test_what_any_neighbour_has_landed_is_found(tmp_path: Path) -> None:
    """Of all that are there; with the life that a copy is checked by."""
    one = neighbour(tmp_path / "kind-one", 1)
    neighbour(tmp_path / "kind-two", 2)
    one.put([3])  # not landed

    engine = Engine(tmp_path)

    assert engine.finds() == {1: "kind-one", 2: "kind-two"}
    found = engine.neighbours.find(key(1))
    assert found is not None
    assert (found.life, found.block) == (1, one.cache.find(key(1)))


def test_pools_of_another_kind_are_not_read(tmp_path: Path) -> None:
    """Be they named so, or hold what other facts have made."""
    neighbour(tmp_path / "other-one", 1)
    (tmp_path / "kind-two").mkdir()
    neighbour(tmp_path / "kind-three", 3)
    shutil.copytree(tmp_path / "kind-three", tmp_path / "kind-four")
    rows_in(tmp_path / "kind-four", 1, facts=b"another model").declare_ready()
    (tmp_path / "kind-three" / "index").chmod(0o644)

    assert Engine(tmp_path).finds() == {}


def test_nothing_is_looked_up_again_within_a_moment(tmp_path: Path) -> None:
    """However often is asked: what came since is found at the next look."""
    engine = Engine(tmp_path)
    neighbour(tmp_path / "kind-one", 1)

    engine.clock.now_s += LOOK_EVERY_S / 2
    engine.neighbours.look()
    assert engine.neighbours.find(key(1)) is None
    assert engine.finds() == {1: "kind-one"}


def test_nothing_is_found_where_a_successor_has_not_proved_its_memory(tmp_path: Path) -> None:
    """Its trial may be writing there. What is left is found once it is ready."""
    owner = neighbour(tmp_path / "kind-one", 1)
    engine = Engine(tmp_path)
    owner.die()
    assert engine.finds() == {1: "kind-one"}

    successor = rows_in(tmp_path / "kind-one", 7)
    assert engine.finds() == {}

    successor.declare_ready()
    assert engine.finds() == {1: "kind-one"}


def test_a_pool_that_goes_takes_its_memory_along(tmp_path: Path) -> None:
    """Nothing of it stays mapped or open, also while nobody looks."""
    neighbour(tmp_path / "other-one", 1)
    shutil.copytree(tmp_path / "other-one", tmp_path / "kind-one")  # which nobody else has open
    engine = Engine(tmp_path)
    assert engine.finds() == {1: "kind-one"}

    def is_in_use() -> bool:
        opened = (each.resolve() for each in Path("/proc/self/fd").iterdir())
        maps = Path("/proc/self/maps").read_text()
        pool = str(tmp_path / "kind-one")
        return pool in maps or any(pool in str(each) for each in opened)

    assert not is_in_use()
    shutil.rmtree(tmp_path / "kind-one")
    assert engine.finds() == {}


@settings(max_examples=40)
@given(deeds=st.lists(DEEDS, max_size=12))
def test_looking_again_is_as_good_as_looking_for_the_first_time(
    deeds: list[tuple[str, Any]],
) -> None:
    """Whatever an owner has done since, entry by entry."""
    with TemporaryDirectory(dir="/dev/shm") as name:
        folder = Path(name)
        owner, engine = Owner(folder / "kind-one"), Engine(folder)
        for deed, arguments in deeds:
            getattr(owner, deed)(*[arguments] if arguments else [])
            anew = Engine(folder)
            assert engine.finds() == anew.finds()
            for number in range(6):
                again = engine.neighbours.find(key(number))
                assert again == anew.neighbours.find(key(number))


@pytest.mark.parametrize("is_followed", [False, True], ids=["dead", "followed"])
def test_the_dead_are_neighbours_too(tmp_path: Path, *, is_followed: bool) -> None:
    """What they have landed is found, before and after somebody takes it over."""
    owner = neighbour(tmp_path / "kind-one", 1, 2)
    if is_followed:
        owner.be_followed()
    else:
        owner.die()

    assert Engine(tmp_path).finds() == {1: "kind-one", 2: "kind-one"}
