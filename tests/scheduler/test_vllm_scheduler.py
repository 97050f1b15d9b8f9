"""Context switches inside a real vLLM engine: same tokens, whoever is interrupted and when."""

import random
from dataclasses import replace

import pytest

from tests.scheduler.engine_harness import (
    BLOCK_TOKENS,
    Engine,
    EngineSettings,
    Outputs,
    Work,
    preempt_at_random,
    prompt,
)
from tests.scheduler.workloads import WORKLOADS

pytestmark = pytest.mark.engine

ROOMY = "roomy"
AHEAD = "scheduling ahead"
FEW_BLOCKS = "few blocks"
SMALL_STEPS = "small steps"
LITTLE_HOST_MEMORY = "little host memory"
BESIDE = "loads beside the steps"
BESIDE_AHEAD = "loads beside the steps, scheduling ahead, few blocks"
TWO_WORKERS = "two workers"
AHEAD_AND_TIGHT = "scheduling ahead, few blocks, small steps"

SETTINGS = {
    ROOMY: EngineSettings(),
    "no prefix cache": EngineSettings(has_prefix_cache=False),
    FEW_BLOCKS: EngineSettings(num_blocks=64),
    LITTLE_HOST_MEMORY: EngineSettings(num_blocks=64, host_blocks=16),
    SMALL_STEPS: EngineSettings(max_num_batched_tokens=64),
    AHEAD: EngineSettings(is_async=True),
    AHEAD_AND_TIGHT: EngineSettings(
        num_blocks=64, host_blocks=48, max_num_batched_tokens=64, is_async=True
    ),
    BESIDE: EngineSettings(num_blocks=64, loads_beside=True),
    BESIDE_AHEAD: EngineSettings(num_blocks=64, host_blocks=48, loads_beside=True, is_async=True),
    TWO_WORKERS: EngineSettings(num_blocks=64, num_workers=2),
}


def on(*names: str) -> pytest.MarkDecorator:
    """Run a test on engines of these settings."""
    return pytest.mark.parametrize(
        "started_engine",
        [SETTINGS[name] for name in names],
        ids=names,
        indirect=True,
        scope="session",
    )


def steps_until(engine: Engine, name: str, *, num_tokens: int = 1) -> int:
    """Steps until a request has put out so many tokens."""
    for num_steps in range(1, 1000):
        engine.step()
        if sum(map(len, engine.outputs[name])) >= num_tokens:
            return num_steps
    message = f"{name} has put out nothing: {engine.progress()}"
    raise AssertionError(message)


def answers(outputs: Outputs, workload: str) -> Outputs:
    return {work.name: outputs[work.name] for work in WORKLOADS[workload]}


# --- the same tokens ------------------------------------------------------------------------------


@on(*SETTINGS)
def test_random_preemption_changes_no_token(
    engine: Engine, undisturbed: Outputs, seed: int
) -> None:
    """A random victim at every second step, and each answer is token for token vLLM's own."""
    engine.steer(preempt_at_random(random.Random(seed)))

    assert engine.run(WORKLOADS["mixed"]) == answers(undisturbed, "mixed")

    switches, progress = engine.switches(), engine.progress()
    assert switches.preemptions > 200
    assert switches.swaps_in > 50
    assert (progress.blocks_used, progress.host_blocks_used) == (0, 0)


@on(FEW_BLOCKS, BESIDE)
def test_every_byte_survives_ten_thousand_switches(engine: Engine, seed: int) -> None:
    """A random victim at every step, 10,000 times: in every layer, what comes back is what left."""
    engine.steer(preempt_at_random(random.Random(seed), every=1))
    works, num_rounds = WORKLOADS["mixed"], 0
    with engine.witnessed_copies() as witness:
        while engine.switches().preemptions < 10_000:
            num_rounds += 1
            engine.run(replace(work, name=f"{work.name}.{num_rounds}") for work in works)

    assert witness.num_blocks_compared > 10_000


@on(ROOMY, AHEAD)
@pytest.mark.parametrize("workload", ["sampled", "constrained"])
def test_sampling_and_grammars_survive_preemption(
    engine: Engine, undisturbed: Outputs, workload: str, seed: int
) -> None:
    """Seeded sampling, several choices, penalties and grammars go on where they were."""
    engine.steer(preempt_at_random(random.Random(seed)))

    assert engine.run(WORKLOADS[workload]) == answers(undisturbed, workload)

    assert engine.switches().swaps_in > 10


@on(ROOMY)
def test_requests_that_cannot_be_swapped_are_recomputed(
    engine: Engine, undisturbed: Outputs, seed: int
) -> None:
    """Where a worker keeps state beside the KV (prompt logprobs), preemption falls back."""
    engine.steer(preempt_at_random(random.Random(seed)))

    assert engine.run(WORKLOADS["scored"]) == answers(undisturbed, "scored")

    switches = engine.switches()
    assert switches.swaps_out == 0
    assert switches.fallbacks == switches.preemptions > 0
    assert switches.recomputed_tokens > 0


# --- displacement ---------------------------------------------------------------------------------


@on(ROOMY, AHEAD)
def test_a_high_priority_request_takes_a_slot_at_once(engine: Engine, undisturbed: Outputs) -> None:
    """With every slot taken by low ones, its first token comes two steps after its prefill's."""
    for work in WORKLOADS["low"]:
        engine.add(work)
    steps_until(engine, "low-7", num_tokens=3)
    engine.add(Work("high", prompt(random.Random(5), 100), 20, priority=0))

    assert steps_until(engine, "high") <= 1 + 2

    engine.drain()
    assert answers(engine.outputs, "low") == answers(undisturbed, "low")
    switches = engine.switches()
    assert (switches.swaps_out, switches.swaps_in) == (1, 1)
    assert (switches.fallbacks, switches.recomputed_tokens) == (0, 0)


@on(FEW_BLOCKS, AHEAD_AND_TIGHT)
def test_a_high_priority_request_takes_blocks_at_once(engine: Engine, undisturbed: Outputs) -> None:
    """With the blocks full of low ones, as many leave as it needs, and come back unharmed."""
    for work in WORKLOADS["long"]:
        engine.add(work)
    steps_until(engine, "long-3", num_tokens=5)
    engine.add(Work("high", prompt(random.Random(6), 500), 20, priority=0))
    # Each low one that goes on takes a token of every step.
    prefill_steps = -(-500 // (engine.scheduler.max_num_scheduled_tokens - len(WORKLOADS["long"])))

    assert steps_until(engine, "high") <= prefill_steps + 2

    assert engine.switches().swaps_out > 0
    engine.drain()
    assert answers(engine.outputs, "long") == answers(undisturbed, "long")


@on(SMALL_STEPS)
def test_a_low_prefill_does_not_eat_a_better_ones_tokens(engine: Engine) -> None:
    """A long low prefill sits out a step, neither swapped nor recomputed, for the better one."""
    engine.add(Work("low", prompt(random.Random(7), 900), 5, priority=5))
    engine.step()
    engine.add(Work("high", prompt(random.Random(8), 50), 5, priority=0))

    assert steps_until(engine, "high") == 1

    assert engine.switches().preemptions == 0
    engine.drain()
    assert len(engine.outputs["low"][0]) == 5


@on(SMALL_STEPS)
def test_a_better_ranked_prefill_pauses_no_stream(engine: Engine) -> None:
    """While a long high prefill takes many steps, a low decode gets its token in each."""
    engine.add(Work("low", prompt(random.Random(14), 20), 100, priority=5))
    steps_until(engine, "low", num_tokens=2)
    engine.add(Work("high", prompt(random.Random(15), 900), 5, priority=0))

    num_steps = steps_until(engine, "high")

    assert num_steps >= 900 // 64
    assert len(engine.outputs["low"][0]) == 2 + num_steps


@on(ROOMY)
def test_changed_priorities_swap_who_runs(engine: Engine) -> None:
    """Requests that wait and requests that run trade places when their priorities do."""
    ids = {work.name: engine.add(work) for work in WORKLOADS["low"]}
    steps_until(engine, "low-7", num_tokens=3)
    first, last = [*ids][:4], [*ids][8:]
    assert {engine.state(name) for name in first} == {"RUNNING"}
    assert {engine.state(name) for name in last} == {"WAITING"}

    new = {ids[name]: 1 for name in last} | {ids[name]: 9 for name in first} | {"unknown": 0}
    engine.scheduler.set_priorities(new)
    engine.step()

    assert {engine.state(name) for name in last} == {"RUNNING"}
    assert {engine.state(name) for name in first} == {"PREEMPTED"}


@on(ROOMY)
def test_equal_priorities_leave_each_other_alone(engine: Engine) -> None:
    """Without a difference in priority nobody is displaced, however many wait."""
    engine.run(WORKLOADS["low"])

    assert engine.switches().preemptions == 0


@on(FEW_BLOCKS)
def test_one_that_better_ones_leave_no_room_for_disturbs_nobody(engine: Engine) -> None:
    """A big request that would not fit anyway waits, and low ones go on meanwhile."""
    choose = random.Random(9)
    for index in range(2):
        engine.add(Work(f"top-{index}", prompt(choose, 700), 50, priority=0))
    engine.add(Work("low", prompt(choose, 300), 60, priority=5))
    steps_until(engine, "low", num_tokens=2)
    engine.add(Work("big", prompt(choose, 900), 5, priority=1))

    steps_until(engine, "low", num_tokens=20)

    assert engine.switches().preemptions == 0
    engine.drain()
    assert "big" in engine.finished


# --- host memory that runs out, copies that fail --------------------------------------------------


@on(LITTLE_HOST_MEMORY)
def test_without_host_memory_left_requests_are_recomputed(
    engine: Engine, undisturbed: Outputs
) -> None:
    """The first victim fills host memory; the next starts over, is counted, and is right."""
    for work in WORKLOADS["long"]:
        engine.add(work)
    steps_until(engine, "long-3", num_tokens=5)

    engine.add(Work("high", prompt(random.Random(10), 900), 10, priority=0))
    engine.drain()

    assert answers(engine.outputs, "long") == answers(undisturbed, "long")
    switches = engine.switches()
    assert switches.swaps_out > 0
    assert switches.fallbacks > 0
    assert engine.progress().host_blocks_used == 0


@on(SMALL_STEPS, AHEAD_AND_TIGHT, BESIDE, BESIDE_AHEAD)
def test_failing_copies_cost_a_recomputation_never_a_token(
    engine: Engine, undisturbed: Outputs, seed: int
) -> None:
    """A third of all copies fail, out or in, and every answer is still right."""
    engine.steer(preempt_at_random(random.Random(seed)))

    works = WORKLOADS["mixed"][:100]
    with engine.failing_copies(random.Random(seed), share=1 / 3) as failures:
        assert engine.run(works) == {work.name: undisturbed[work.name] for work in works}

    assert failures.count > 20
    assert engine.switches().recomputed_tokens > 0
    progress = engine.progress()
    assert (progress.blocks_used, progress.host_blocks_used) == (0, 0)


# --- aborts and storms ----------------------------------------------------------------------------


@on(ROOMY, AHEAD)
@pytest.mark.parametrize("state", ["waiting", "running", "just swapped out", "swapped out", "back"])
def test_an_abort_leaves_nothing_behind(engine: Engine, state: str) -> None:
    """Whatever a request is doing when it is aborted, its blocks in both memories become free."""
    works = WORKLOADS["low"][: 9 if state == "waiting" else 8]
    for work in works:
        engine.add(work)
    target = works[-1].name
    steps_until(engine, "low-6", num_tokens=3)
    if state in ("just swapped out", "swapped out", "back"):
        engine.add(Work("high", prompt(random.Random(11), 30), 10, priority=0))
        engine.step()
        assert engine.state(target) == "PREEMPTED"
        assert engine.progress().host_blocks_used == 2  # of 32 tokens, for some 50
    if state == "swapped out":
        engine.step()
    while state == "back" and engine.state(target) == "PREEMPTED":
        engine.step()

    engine.abort(target)
    engine.step()

    assert engine.progress().host_blocks_used == 0
    for work in works[:-1]:
        engine.abort(work.name)
    engine.drain()
    progress = engine.progress()
    assert (progress.blocks_used, progress.num_running, progress.num_waiting) == (0, 0, 0)
    assert not engine.scheduler.requests


@on(LITTLE_HOST_MEMORY, AHEAD, AHEAD_AND_TIGHT, BESIDE, BESIDE_AHEAD)
def test_a_storm_leaves_nobody_stuck_and_nothing_behind(
    engine: Engine, undisturbed: Outputs, seed: int
) -> None:
    """Requests come, are re-ranked, preempted and aborted at random; the others end right."""
    engine.steer(preempt_at_random(random.Random(seed)))
    storm = Storm(engine, random.Random(seed))

    storm.blow()

    served = storm.names - storm.aborted
    assert len(served) > 100
    assert {name: engine.outputs[name] for name in served} == {
        name: undisturbed[name] for name in served
    }
    progress = engine.progress()
    assert (progress.blocks_used, progress.host_blocks_used) == (0, 0)
    assert not engine.scheduler.requests


class Storm:
    """Throws the mixed requests at an engine, and everything else that can happen to them."""

    def __init__(self, engine: Engine, choose: random.Random) -> None:
        self.names = {work.name for work in WORKLOADS["mixed"]}
        self.aborted: set[str] = set()
        self._engine, self._choose = engine, choose
        self._pending = list(WORKLOADS["mixed"])
        self._live: dict[str, str] = {}
        self._stood: tuple[str, int, int] = ("", 0, 0)

    def blow(self) -> None:
        while self._pending or self._live:
            if self._pending and self._choose.random() < 0.3:
                work = self._pending.pop()
                self._live[work.name] = self._engine.add(work)
            if self._live and self._choose.random() < 0.3:
                name = self._choose.choice(sorted(self._live))
                priority = self._choose.randrange(4)
                self._engine.scheduler.set_priorities({self._live[name]: priority})
            if self._live and self._choose.random() < 0.02:
                name = self._choose.choice(sorted(self._live))
                self._engine.abort(name)
                self.aborted.add(name)
            self._engine.step()
            for name in self._engine.finished & self._live.keys():
                del self._live[name]
            self._check_that_somebody_moves()
        self._engine.drain()

    def _check_that_somebody_moves(self) -> None:
        """The best ranked running request gets on, whatever happens to the others."""
        running = self._engine.scheduler.running
        if not running:
            return
        best = min(running, key=lambda one: (one.priority, one.arrival_time))
        name, stood_at, num_steps = self._stood
        if (name, stood_at) != (best.request_id, best.num_computed_tokens):
            num_steps = 0
        assert num_steps < 20
        self._stood = (best.request_id, best.num_computed_tokens, num_steps + 1)


# --- tenants --------------------------------------------------------------------------------------


@on(ROOMY)
def test_tenants_share_no_kv_in_either_memory(engine: Engine) -> None:
    """The same prompt under another salt finds nothing, on the device or in host memory."""
    same = prompt(random.Random(12), 200)
    engine.add(Work("first", same, 60, priority=5, salt="one"))
    steps_until(engine, "first", num_tokens=5)
    engine.add(Work("other tenant", same, 5, priority=5, salt="two"))
    engine.add(Work("same tenant", same, 5, priority=5, salt="one"))
    engine.step()
    assert engine.cached_tokens["other tenant"] == 0
    assert engine.cached_tokens["same tenant"] == 200 // BLOCK_TOKENS * BLOCK_TOKENS

    for index in range(8):
        engine.add(Work(f"high-{index}", prompt(random.Random(index), 10), 40, priority=0))
    engine.step()
    assert engine.state("first") == "PREEMPTED"
    assert engine.progress().host_blocks_used > 0
    engine.forget_cached_blocks()
    engine.add(Work("third tenant", same, 5, priority=-1, salt="three"))
    engine.step()
    assert engine.cached_tokens["third tenant"] == 0


@on(ROOMY)
def test_progress_adds_up_by_tenant(engine: Engine, seed: int) -> None:
    """Each prompt and output token counts once for its tenant, whatever was interrupted."""
    choose = random.Random(13)
    engine.steer(preempt_at_random(random.Random(seed)))
    for index in range(20):
        options = {"extra_args": {"fastswitch_tenant": f"tenant-{index % 2}"}}
        engine.add(Work(f"counted-{index}", prompt(choose, 60), 30, options=options))
    reports = []
    for _ in range(10):
        engine.step()
        reports.append(engine.progress())
    engine.drain()
    reports.append(engine.progress(is_full=True))

    service = reports[-1].tenant_service
    assert service["tenant-0"] == service["tenant-1"] == (10 * 60, 10 * 30)
    assert all(
        live.prompt_done == 60 for report in reports for live in report.live if live.output_done
    )
    finished = [one for report in reports for one in report.finished if "tenant-" in one.tenant]
    assert len(finished) == 20
    assert {(one.prompt_done, one.output_done, one.reason) for one in finished} == {
        (60, 30, "length")
    }
