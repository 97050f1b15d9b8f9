"""Policies by name: all there are can be had, live, and forget; what there is not is explained."""

import pickle
import sys
from copy import copy
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.settings import FairnessSettings
from scheduler.admission import Wishes
from scheduler.errors import PolicyImportError, SchedulerError, UnknownPolicyError
from scheduler.policies.catalogue import POLICIES, policy_factory
from scheduler.policies.fcfs import FirstComeFirstServed
from scheduler.policies.policy import keeps_turns
from tests.scheduler.policies.stand_in import StandInEngine, advance, make_policy, make_request

OPTIONS = FairnessSettings().policy_options()


def test_a_name_that_is_not_there_is_answered_with_those_that_are() -> None:
    """Whoever mistypes a policy sees what there is to choose from."""
    with pytest.raises(UnknownPolicyError) as caught:
        policy_factory("vct", OPTIONS)

    assert str(caught.value) == (
        "there is no policy 'vct'; there are vtc, deadline, fair-user, fcfs, program-fcfs, static, "
        "random, markov, and your own as module:Class"
    )


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_is_called_what_settings_call_it(name: str) -> None:
    """Checkpoints are taken up only by a policy of the same name."""
    assert make_policy(FairnessSettings(policy=name)).name == name


@pytest.mark.parametrize("name", POLICIES)
def test_whoever_asks_is_served_in_the_end(name: str) -> None:
    """Each policy ranks all that is live, and a finite amount of work ends."""
    engine = StandInEngine(make_policy(FairnessSettings(policy=name)), seats=2)
    for number in range(30):
        wishes = Wishes(priority=number % 3, service_class="batch" if number % 2 else None)
        conversation = f"c{number % 7}" if number % 3 else None
        engine.add(
            make_request(
                f"t{number % 5}",
                conversation=conversation,
                max_output_tokens=1 + number % 8,
                wishes=wishes,
            )
        )
    for _ in range(200):
        engine.step()
        assert all(priority >= 0 for priority in engine.policy.priorities(engine.live))

    assert engine.live == []


@pytest.mark.parametrize(
    "name", [name for name in POLICIES if keeps_turns(make_policy(FairnessSettings(policy=name)))]
)
@given(events=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 40)), max_size=60))
@settings(max_examples=50, deadline=None)
def test_a_policy_keeps_the_turns_that_it_says_it_keeps(
    name: str, events: list[tuple[int, int]]
) -> None:
    """Whatever happens, no request of a tenant and class ranks before one that came earlier."""
    engine = StandInEngine(make_policy(FairnessSettings(policy=name, quantum=50.0)), seats=2)
    for number, (tenant, output_tokens) in enumerate(events):
        if not output_tokens:
            engine.step()
            continue
        wishes = Wishes(service_class="batch" if number % 3 else None)
        engine.add(make_request(f"t{tenant}", max_output_tokens=output_tokens, wishes=wishes))
        rows: dict[tuple[str, str | None], list[int]] = {}
        ranked = zip(engine.live, engine.policy.priorities(engine.live), strict=True)
        for request, priority in sorted(ranked, key=lambda pair: int(pair[0].request_id[1:])):
            row = request.tenant, request.wishes.service_class
            rows.setdefault(row, []).append(priority)
        assert all(row == sorted(row) for row in rows.values())


@pytest.mark.parametrize("name", POLICIES)
def test_invented_tenants_do_not_fill_the_memory(name: str) -> None:
    """After 100,000 tenants a policy holds no more than after 20,000."""
    policy = make_policy(FairnessSettings(policy=name))

    def come_and_go(numbers: range) -> int:
        for number in numbers:
            request = make_request(f"invented {number:6}")
            policy.arrive(request)
            advance(policy, request, prompt=1, output=1)
            policy.depart(request)
        policy.rerank(now_s=float(numbers.stop), num_steps=numbers.stop)
        return len(pickle.dumps(policy))

    after_some = come_and_go(range(20_000))

    assert come_and_go(range(20_000, 100_000)) <= 1.01 * after_some + 100


@pytest.mark.parametrize("name", POLICIES)
def test_a_policy_goes_on_from_what_it_saved(name: str) -> None:
    """Ranks and counters after loading are those of before, live requests and all."""
    old = make_policy(FairnessSettings(policy=name))
    requests = [make_request(f"t{number % 4}", max_output_tokens=50) for number in range(12)]
    for request in requests:
        old.arrive(request)
    old.rerank(now_s=0.0, num_steps=0)
    new = make_policy(FairnessSettings(policy=name))
    requests_again = [copy(request) for request in requests]
    for request in requests_again:
        new.arrive(request)

    new.load(old.save())
    new.rerank(now_s=0.0, num_steps=0)

    assert new.priorities(requests_again) == old.priorities(requests)
    assert new.counters() == old.counters()


# --- policies of somebody else's ----------------------------------------------------------------


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """A module that can be imported in this test alone; it holds what the test is given."""
    name = f"policy_of_{abs(hash(request.node.name))}"
    (tmp_path / f"{name}.py").write_text(request.param, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, name, raising=False)
    return name


OWN = """
from scheduler.policies.fcfs import FirstComeFirstServed
from scheduler.policies.policy import keeps_turns

class Own(FirstComeFirstServed):
    name = "own"

    def __init__(self, service, shares, *, share=0.5):
        super().__init__(service, shares)
        self.share = share

not_a_class = 5

class Half:
    name = "half"
    def arrive(self, request): ...

class Failing(FirstComeFirstServed):
    def __init__(self, service, shares):
        raise RuntimeError("no such table")
"""


@pytest.mark.parametrize("module", [OWN], indirect=True)
def test_a_policy_is_had_by_its_import_path(module: str) -> None:
    """It is made with the arguments that settings give it."""
    settings = FairnessSettings(policy=f"{module}:Own", policy_args={"share": 0.25})
    policy = make_policy(settings)

    assert isinstance(policy, FirstComeFirstServed)
    assert (policy.name, vars(policy)["share"]) == ("own", 0.25)


@pytest.mark.parametrize("module", [OWN], indirect=True)
@pytest.mark.parametrize(
    ("policy", "args", "problem"),
    [
        ("Other", {}, "has no class 'Other'"),
        ("not_a_class", {}, "has no class 'not_a_class'"),
        ("Half", {}, "class 'Half' lacks counters, depart, load, priorities, progress, rerank"),
        ("Own", {"shard": 1}, "cannot be made: "),
        ("Failing", {}, "cannot be made: no such table"),
    ],
)
def test_what_cannot_be_used_as_a_policy_is_explained(
    module: str, policy: str, args: dict[str, object], problem: str
) -> None:
    """Where it is configured, before anything starts."""
    with pytest.raises(ValueError, match=f"policy {module}:{policy}: ") as caught:
        FairnessSettings(policy=f"{module}:{policy}", policy_args=args)

    assert problem in str(caught.value)


@pytest.mark.parametrize("module", ["import there_is_no_such_module"], indirect=True)
def test_a_module_that_cannot_be_imported_is_explained(module: str) -> None:
    """Also where it is not the module itself that is missing."""
    for path in (f"{module}:Policy", "there.is.no.such.module:Policy", ":Policy"):
        with pytest.raises(PolicyImportError, match="cannot be imported: "):
            policy_factory(path, OPTIONS)


@pytest.mark.parametrize(
    "error", [UnknownPolicyError("vct", "vtc, fcfs"), PolicyImportError("m:C", "no class")]
)
def test_errors_cross_processes(error: SchedulerError) -> None:
    """Ray pickles errors by their arguments: nothing of the message may get lost."""
    assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301 - our own bytes
