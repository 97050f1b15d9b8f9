"""Which engine a request goes to, and whether any has room for it."""

from itertools import count
from random import Random

from hypothesis import assume, given
from hypothesis import strategies as st

from scheduler.admission import EngineCapacity
from scheduler.seating import AFFINITY_BOUND, Seating
from scheduler.tracking import RequestTable, TrackedRequest

SEATS = 8
CAPACITY = EngineCapacity(max_num_seqs=SEATS, blocks_total=100, block_tokens=10)
URGENT, PATIENT = 0, 9


class Hall:
    """Engines whose seats a test fills."""

    def __init__(self, *engine_ids: str, seed: int = 0) -> None:
        self.table = RequestTable()
        self.seating = Seating(self.table, Random(seed))
        self._names = count()
        for engine_id in engine_ids:
            self.seating.join(engine_id, CAPACITY)

    def request(self, *, load: float = 1.0, prompt: int = 10, left: float = 10.0) -> TrackedRequest:
        request = TrackedRequest(
            request_id=f"r{next(self._names)}",
            tenant="acme",
            conversation=None,
            engine_id=None,
            arrival_s=0.0,
            prompt_tokens=prompt,
            max_output_tokens=None,
        )
        self.table.add(request)
        self.table.set_outlook(request, load_units=load, output_left=left)
        return request

    def seat(self, engine_id: str, num: int = 1, *, load: float = 1.0, prompt: int = 10) -> None:
        for _ in range(num):
            self.table.place(self.request(load=load, prompt=prompt), engine_id)

    def choose(
        self,
        request: TrackedRequest | None = None,
        *,
        priority: int = PATIENT,
        warm: str | None = None,
        avoid: frozenset[str] = frozenset(),
    ) -> str | None:
        request = request or self.request()
        return self.seating.choose(request, priority, warm=warm, avoid=avoid)


def test_the_less_loaded_of_two_engines_takes_a_new_request() -> None:
    """With nothing cached, load alone decides between two."""
    hall = Hall("a", "b")
    hall.seat("a", load=30.0)
    hall.seat("b", load=10.0)

    assert hall.choose() == "b"


def test_two_of_many_engines_are_drawn_with_the_given_randomness() -> None:
    """Idle engines are drawn alike with the same seed, and all of them in the long run."""

    def draws(seed: int) -> list[str | None]:
        hall = Hall(*"abcdefgh", seed=seed)
        return [hall.choose() for _ in range(200)]

    assert draws(1) == draws(1)
    assert set(draws(1)) == set("abcdefgh")


def test_the_busiest_engine_of_all_is_never_chosen_for_its_load() -> None:
    """One of any two engines is less loaded than the one that has most."""
    hall = Hall(*"abcdefgh")
    hall.seat("c", load=50.0)

    assert "c" not in {hall.choose() for _ in range(200)}


def test_a_full_engine_takes_nobody_it_would_not_displace_for() -> None:
    """Past the seats and the few places behind them a request waits, or goes elsewhere."""
    hall = Hall("a")
    hall.seat("a", SEATS + 2)
    hall.seating.note_priorities("a", [PATIENT] * (SEATS + 2), worst_running=PATIENT)

    assert hall.choose() is None
    hall.seating.join("b", CAPACITY)
    assert hall.choose() == "b"


def test_who_outranks_somebody_that_runs_need_not_wait() -> None:
    """It goes where the least urgent request runs, to displace it."""
    hall = Hall("a", "b")
    for engine_id, worst in (("a", 3), ("b", 7)):
        hall.seat(engine_id, SEATS + 2)
        priorities = [worst] * SEATS + [PATIENT] * 2
        hall.seating.note_priorities(engine_id, priorities, worst_running=worst)

    assert hall.choose(priority=5) == "b"
    assert hall.choose(priority=7) is None
    assert hall.choose(priority=URGENT) == "b"


def test_where_a_request_would_wait_comes_after_where_it_runs() -> None:
    """A free seat, or somebody to displace, outweighs any load."""
    hall = Hall("a", "b")
    hall.seat("a", SEATS, load=1.0)
    hall.seat("b", SEATS - 1, load=10.0)
    hall.seating.note_priorities("a", [5] * SEATS, worst_running=5)

    assert {hall.choose(priority=5) for _ in range(20)} == {"b"}
    hall.seat("b", load=10.0)
    hall.seating.note_priorities("b", [7] * SEATS, worst_running=7)
    assert {hall.choose(priority=5) for _ in range(SEATS // 2)} == {"b"}
    assert hall.choose(priority=URGENT) == "a"


def test_of_engines_that_run_equals_the_less_loaded_is_displaced_on() -> None:
    """Load counts as of an engine's last report, and with what has been sent there since."""
    hall = Hall("a", "b")
    for engine_id, load in (("a", 3.0), ("b", 2.0)):
        hall.seat(engine_id, SEATS + 2, load=load)
        hall.seating.note_priorities(engine_id, [7] * (SEATS + 2), worst_running=7)

    heavy = hall.request(load=20.0)
    assert hall.choose(heavy, priority=5) == "b"
    assert hall.choose(priority=5) == "a"


def test_no_more_come_to_displace_others_than_can_run() -> None:
    """As many as may run before the next report; the rest wait where they can go elsewhere."""
    hall = Hall("a")
    hall.seating.note_report("a", num_ended=0, num_steps=1)
    hall.seat("a", SEATS + 2)
    hall.seating.note_priorities("a", [7] * (SEATS + 2), worst_running=7)

    for _ in range(2 * SEATS):
        assert hall.choose(priority=5) == "a"
    assert hall.choose(priority=5) is None
    assert hall.choose(priority=URGENT) == "a"


def test_memory_to_come_is_looked_at_not_memory_held_now() -> None:
    """Requests that have just begun are few tokens now and will be many."""
    hall = Hall("a")
    for _ in range(5):
        hall.table.place(hall.request(prompt=10, left=190.0), "a")
    long, short = hall.request(prompt=10, left=190.0), hall.request(prompt=10, left=20.0)

    assert hall.choose(long) is None
    assert hall.choose(short) == "a"


def test_an_idle_engine_takes_whatever_comes() -> None:
    """A request larger than all memory is the engine's to refuse, not ours to keep waiting."""
    hall = Hall("a")

    assert hall.choose(hall.request(prompt=100_000)) == "a"


def test_an_engine_that_ends_many_between_reports_has_more_places() -> None:
    """Places behind the seats grow with what ends in a report's time, so no seat stays empty."""
    hall = Hall("a")
    hall.seat("a", SEATS + 2)
    assert hall.choose() is None
    for _ in range(20):
        hall.seating.note_report("a", num_ended=10, num_steps=1)

    assert hall.choose() == "a"


def test_a_conversation_returns_to_its_engine_while_that_is_about_as_busy_as_others() -> None:
    """A warm engine a little above the mean is still chosen over an idle one."""
    hall = Hall("warm", "cold")
    hall.seat("warm", load=12.0)
    hall.seat("cold", load=8.0)

    assert hall.choose(hall.request(load=0.0), warm="warm") == "warm"


def test_a_hot_engine_loses_its_conversations() -> None:
    """A hot conversation or prefix cannot pin an engine: beyond the bound, load decides."""
    hall = Hall("warm", "cold")
    hall.seat("warm", load=20.0)
    hall.seat("cold", load=8.0)

    assert hall.choose(hall.request(load=1.0), warm="warm") == "cold"


def test_affinity_holds_on_an_idle_fleet() -> None:
    """The one request that makes a warm engine busier than idle ones does not drive it away."""
    hall = Hall(*"abcd", "warm")
    hall.seat("warm", load=5.0)

    assert hall.choose(hall.request(load=5.0), warm="warm") == "warm"


def test_engines_to_be_avoided_or_gone_are_not_chosen() -> None:
    """Neither affinity nor load leads to an engine that the request shall not go to."""
    hall = Hall("a", "b")
    hall.seat("b", load=50.0)

    assert hall.choose(warm="a", avoid=frozenset({"a"})) == "b"
    assert hall.choose(warm="gone") == "a"
    hall.seating.leave("a")
    assert hall.choose(warm="a") == "b"


@given(
    loads=st.lists(st.integers(0, 10**6), min_size=2, max_size=8),
    draw=st.randoms(use_true_random=False),
    request_load=st.integers(0, 10**4),
)
def test_no_engine_is_overloaded_for_affinity(
    loads: list[int], draw: Random, request_load: int
) -> None:
    """Within the bound of the mean the warm engine is chosen; beyond, as if none were warm."""
    number, seed = draw.randrange(len(loads)), draw.randrange(100)
    warm = f"e{number}"
    beyond = loads[number] - AFFINITY_BOUND * sum(loads) / len(loads) - request_load
    assume(abs(beyond) > 1e-6)  # where rounding does not decide

    def choice(warm: str | None) -> str | None:
        hall = Hall(*(f"e{number}" for number in range(len(loads))), seed=seed)
        for number, load in enumerate(loads):
            hall.seat(f"e{number}", load=load)
        return hall.choose(hall.request(load=request_load), warm=warm)

    assert choice(warm) == (warm if beyond < 0 else choice(None))
