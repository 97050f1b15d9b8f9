"""Turns that wait for a tool, inside a real engine: their KV stays while it pays, and no longer."""

import random
from collections.abc import Iterator

import pytest

from scheduler.reports import SwitchCounts
from scheduler.vllm_pins import HOLD_S
from tests.scheduler.engine_harness import (
    BLOCK_TOKENS,
    Engine,
    EngineSettings,
    Work,
    preempt_at_random,
    prompt,
)

pytestmark = pytest.mark.engine

NUM_BLOCKS = 64
WITH_HOST = "with host memory"
WITHOUT_HOST = "without host memory"
AHEAD = "scheduling ahead, loads beside the steps"

SETTINGS = {
    WITH_HOST: EngineSettings(num_blocks=NUM_BLOCKS, host_blocks=256),
    WITHOUT_HOST: EngineSettings(num_blocks=NUM_BLOCKS, host_blocks=0),
    AHEAD: EngineSettings(num_blocks=NUM_BLOCKS, host_blocks=256, is_async=True, loads_beside=True),
}

TTL_S = 20.0


def on(*names: str) -> pytest.MarkDecorator:
    """Run a test on engines of these settings."""
    return pytest.mark.parametrize(
        "started_engine",
        [SETTINGS[name] for name in names],
        ids=names,
        indirect=True,
        scope="session",
    )


class Agents:
    """Conversations on an engine whose clock the test moves."""

    def __init__(self, engine: Engine, choose: random.Random) -> None:
        self.engine = engine
        self.now_s = 1000.0
        self._choose = choose
        self._count = 0
        engine.scheduler._now_s = lambda: self.now_s
        engine.scheduler.pin_turns({})

    @property
    def counts(self) -> SwitchCounts:
        return self.engine.switches()

    @property
    def num_missing_blocks(self) -> int:
        """Blocks that are not free; with nothing running, those that are held."""
        pool = self.engine.scheduler.kv_cache_manager.block_pool
        return pool.num_gpu_blocks - 1 - pool.get_num_free_blocks()

    def work(
        self,
        num_tokens: int,
        *,
        after: list[int] | None = None,
        max_tokens: int = 8,
        priority: int = 0,
        conversation: str | None = None,
    ) -> Work:
        """A new request; ``after`` is what its prompt begins with."""
        self._count += 1
        return Work(
            f"turn {self._count}",
            [*(after or []), *prompt(self._choose, num_tokens)],
            max_tokens,
            priority=priority,
            conversation=conversation,
        )

    def take_turn(
        self, num_tokens: int, *, ttl_s: float = TTL_S, priority: int = 0, conversation: str = "c"
    ) -> list[int]:
        """A turn that ends with a tool call; all of its tokens."""
        work = self.work(num_tokens, priority=priority, conversation=conversation)
        request_id = self.engine.add(work)
        self.engine.drain()
        if ttl_s:
            self.engine.scheduler.pin_turns({request_id: ttl_s})
        return [*work.prompt, *self.engine.outputs[work.name][0]]

    def overwrite_cache(self) -> None:
        """Others use all blocks that they can get, again and again."""
        for _ in range(3):
            num_blocks = NUM_BLOCKS - 1 - self.num_missing_blocks
            for size in (num_blocks // 2, num_blocks - num_blocks // 2 - 1):
                self.engine.run([self.work((size - 1) * BLOCK_TOKENS)])

    def pass_time(self, seconds: float) -> None:
        """With an exchange at its end, as there are always some."""
        self.now_s += seconds
        self.engine.scheduler.pin_turns({})


@pytest.fixture
def agents(engine: Engine, seed: int) -> Iterator[Agents]:
    """Pins are on, and nothing of them is left behind."""
    agents = Agents(engine, random.Random(seed))
    yield agents
    engine.drain()
    agents.pass_time(TTL_S)
    assert agents.num_missing_blocks == 0
    totals = agents.engine.scheduler._held.totals
    assert totals.pins == totals.pin_hits + totals.pins_wasted + totals.pins_released
    engine.scheduler.pin_turns(None)


def num_full_blocks(tokens: list[int]) -> int:
    """Of the last token there is no KV yet."""
    return (len(tokens) - 1) // BLOCK_TOKENS


@on(WITH_HOST, WITHOUT_HOST, AHEAD)
def test_the_next_turn_computes_and_loads_nothing_again(agents: Agents) -> None:
    """While others overwrote whatever they could, all the turn's blocks stayed where they were."""
    tokens = agents.take_turn(200)
    agents.overwrite_cache()
    following = agents.work(40, after=tokens, conversation="c")
    agents.engine.run([following])

    assert agents.engine.cached_tokens[following.name] == num_full_blocks(tokens) * BLOCK_TOKENS
    counts = agents.counts
    assert (counts.blocks_in, counts.recomputed_tokens) == (0, 0)
    assert (counts.pins, counts.pin_hits, counts.pins_wasted) == (1, 1, 0)
    assert counts.wasted_block_s == 0


@on(WITHOUT_HOST)
def test_without_a_pin_the_next_turn_starts_over(agents: Agents) -> None:
    """What the test above would look like if nothing were held."""
    tokens = agents.take_turn(200, ttl_s=0.0)
    agents.pass_time(HOLD_S)
    agents.overwrite_cache()
    following = agents.work(40, after=tokens, conversation="c")
    agents.engine.run([following])

    assert agents.engine.cached_tokens[following.name] == 0


@on(WITH_HOST)
def test_a_pin_that_has_ended_leaves_a_copy_in_host_memory(agents: Agents) -> None:
    """After its time the KV is loaded, not computed."""
    tokens = agents.take_turn(200)
    agents.pass_time(TTL_S)
    agents.overwrite_cache()
    following = agents.work(40, after=tokens, conversation="c")
    agents.engine.run([following])

    counts = agents.counts
    assert agents.engine.cached_tokens[following.name] == num_full_blocks(tokens) * BLOCK_TOKENS
    assert counts.blocks_found == num_full_blocks(tokens)
    assert (counts.pin_hits, counts.pins_wasted) == (0, 1)
    assert counts.wasted_block_s == num_full_blocks(tokens) * TTL_S


@on(WITH_HOST, WITHOUT_HOST, AHEAD)
def test_a_turn_is_held_until_it_is_known_whether_it_waits(agents: Agents) -> None:
    """For a moment only, and what it holds counts as free."""
    tokens = agents.take_turn(200, ttl_s=0.0)
    assert agents.num_missing_blocks == num_full_blocks(tokens)
    assert agents.engine.progress().blocks_used == 0

    agents.pass_time(HOLD_S)

    assert agents.num_missing_blocks == 0
    assert agents.counts.pins_wasted == 0


@on(WITH_HOST)
def test_turns_without_a_conversation_are_not_held(agents: Agents) -> None:
    """Nobody could say that a next one of theirs is to come; nor where pins are off."""
    agents.engine.run([agents.work(200)])
    assert agents.num_missing_blocks == 0

    agents.engine.scheduler.pin_turns(None)
    agents.engine.run([agents.work(200, conversation="c")])
    assert agents.num_missing_blocks == 0


@on(WITH_HOST)
def test_half_of_the_blocks_are_pinned_at_most(agents: Agents) -> None:
    """The worst ranked pins make way for the others."""
    for index in range(8):
        agents.take_turn(10 * BLOCK_TOKENS, conversation=f"c{index}", priority=8 - index)

    counts = agents.counts
    assert (counts.pins, counts.pins_released) == (8, 5)
    assert counts.pinned_blocks == 3 * 10


# --- under pressure -------------------------------------------------------------------------------


@on(WITH_HOST, WITHOUT_HOST, AHEAD)
def test_who_outranks_a_turn_does_not_wait_for_its_blocks(agents: Agents) -> None:
    """A better-ranked request is admitted in its first step, and nobody is preempted for it."""
    agents.take_turn(25 * BLOCK_TOKENS, priority=5)
    beside = agents.work(20 * BLOCK_TOKENS, max_tokens=100, priority=4)
    agents.engine.add(beside)
    agents.engine.step()

    better = agents.work(25 * BLOCK_TOKENS, priority=3)
    agents.engine.add(better)
    agents.engine.step()

    assert (agents.engine.state(better.name), agents.engine.state(beside.name)) == (
        "RUNNING",
        "RUNNING",
    )
    assert (agents.counts.preemptions, agents.counts.pins_released) == (0, 1)


@on(WITH_HOST, WITHOUT_HOST)
def test_who_does_not_outrank_a_turn_waits_until_its_time_is_over(agents: Agents) -> None:
    """Beside others that run; then it gets the blocks."""
    agents.take_turn(25 * BLOCK_TOKENS, priority=5)
    agents.engine.add(agents.work(20 * BLOCK_TOKENS, max_tokens=100, priority=4))
    worse = agents.work(25 * BLOCK_TOKENS, priority=6)
    agents.engine.add(worse)
    for _ in range(5):
        agents.engine.step()
    assert agents.engine.state(worse.name) == "WAITING"

    agents.pass_time(TTL_S)
    agents.engine.step()

    assert agents.engine.state(worse.name) == "RUNNING"
    assert (agents.counts.pins_wasted, agents.counts.pins_released) == (1, 0)


@on(WITH_HOST, WITHOUT_HOST, AHEAD)
def test_nobody_waits_for_ever_where_nobody_runs(agents: Agents) -> None:
    """What needs more than the pins leave gets it, whatever its rank, once nothing else runs."""
    for index in range(2):
        agents.take_turn(16 * BLOCK_TOKENS, conversation=f"c{index}")
    assert agents.num_missing_blocks == 32  # of 63
    worse = agents.work(31 * BLOCK_TOKENS + 1, priority=9)
    agents.engine.add(worse)
    for _ in range(5):
        agents.engine.step()

    assert agents.engine.outputs[worse.name][0]
    assert agents.counts.pins_released > 0


@on(WITH_HOST, WITHOUT_HOST, AHEAD)
def test_nobody_who_runs_is_preempted_for_a_turn_that_has_ended(agents: Agents) -> None:
    """Running requests that grow take the blocks of turns, however good their rank was."""
    agents.take_turn(25 * BLOCK_TOKENS, priority=0)
    works = [agents.work(15 * BLOCK_TOKENS, max_tokens=300, priority=9) for _ in range(2)]
    agents.engine.run(works)

    assert (agents.counts.preemptions, agents.counts.pins_released) == (0, 1)


@on(WITH_HOST, WITHOUT_HOST)
def test_the_next_turn_keeps_what_it_waits_for(agents: Agents) -> None:
    """With its turn come but no room to run, a pin outlasts its time and is a hit in the end."""
    tokens = agents.take_turn(10 * BLOCK_TOKENS, priority=5)
    for _ in range(8):  # every slot
        agents.engine.add(agents.work(BLOCK_TOKENS, max_tokens=60, priority=4))
    agents.engine.step()
    following = agents.work(40, after=tokens, priority=5, conversation="c")
    agents.engine.add(following)
    agents.pass_time(2 * TTL_S)
    agents.engine.drain()

    assert agents.engine.cached_tokens[following.name] == num_full_blocks(tokens) * BLOCK_TOKENS
    assert (agents.counts.pin_hits, agents.counts.pins_wasted) == (1, 0)


# --- other ends -----------------------------------------------------------------------------------


@on(WITH_HOST, WITHOUT_HOST)
def test_a_next_turn_that_is_aborted_ends_the_pin(agents: Agents) -> None:
    """It was waited for and will not come: nothing is held for it any more."""
    tokens = agents.take_turn(200)
    following = agents.work(40, after=tokens, conversation="c")
    agents.engine.add(following)
    agents.engine.abort(following.name)
    agents.engine.drain()

    assert agents.num_missing_blocks == 0
    assert (agents.counts.pin_hits, agents.counts.pins_wasted) == (0, 1)


@on(WITHOUT_HOST)
def test_a_next_turn_that_goes_on_otherwise_is_no_hit(agents: Agents) -> None:
    """Of the same conversation, but with a prompt that has only its beginning in common."""
    tokens = agents.take_turn(300)
    following = agents.work(200, after=tokens[: 2 * BLOCK_TOKENS], conversation="c")
    agents.engine.run([following])

    assert agents.engine.cached_tokens[following.name] == 2 * BLOCK_TOKENS
    assert (agents.counts.pin_hits, agents.counts.pins_wasted) == (0, 1)


@on(WITHOUT_HOST)
def test_another_tenants_conversation_of_the_same_name_is_another(agents: Agents) -> None:
    """Its turn comes and goes, and the pin stays for whom it is."""
    agents.take_turn(200, conversation="c")
    theirs = Work("theirs", prompt(random.Random(0), 100), 4, salt="theirs", conversation="c")
    agents.engine.run([theirs])

    assert agents.counts.pins == 1
    assert (agents.counts.pin_hits, agents.counts.pins_wasted) == (0, 0)


@on(WITH_HOST, WITHOUT_HOST)
def test_a_reset_of_the_cache_ends_all_pins(agents: Agents) -> None:
    """What they hold is not right any more, and the reset succeeds."""
    agents.take_turn(200)

    assert agents.engine.scheduler.reset_prefix_cache()
    assert agents.num_missing_blocks == 0


@on(WITH_HOST, WITHOUT_HOST, AHEAD)
def test_random_agents_come_to_no_harm(agents: Agents, seed: int) -> None:
    """Turns, tools, aborts, switches at every other step: each answer is the one it should be."""
    choose, engine = random.Random(seed), agents.engine
    engine.steer(preempt_at_random(choose))
    histories: dict[str, list[int]] = {f"c{index}": [] for index in range(6)}
    live: dict[str, tuple[Work, str]] = {}
    done: list[Work] = []
    for _ in range(400):
        name = choose.choice(list(histories))
        if name not in live and len(histories[name]) < 500:
            work = agents.work(
                choose.randrange(10, 200),
                after=histories[name],
                max_tokens=choose.randrange(1, 40),
                priority=choose.randrange(3),
                conversation=name,
            )
            live[name] = work, engine.add(work)
        elif name in live and choose.random() < 0.02:
            engine.abort(live.pop(name)[0].name)
        engine.step()
        agents.pass_time(choose.choice([0.0, 0.0, 0.3]))
        for conversation, (work, request_id) in list(live.items()):
            if work.name in engine.finished:
                del live[conversation]
                done.append(work)
                histories[conversation] = [*work.prompt, *engine.outputs[work.name][0]]
                if choose.random() < 0.7:
                    engine.scheduler.pin_turns({request_id: choose.choice([0.5, 5.0])})
    engine.drain()
    answers = {work.name: engine.outputs[work.name] for work in done}
    counts = agents.counts
    engine.clear()

    assert counts.pin_hits > 0
    assert counts.pins_wasted > 0
    undisturbed = [Work(f"{work.name} again", work.prompt, work.max_tokens) for work in done]
    for work, again in zip(done, undisturbed, strict=True):
        engine.clear()
        assert engine.run([again]) == {again.name: answers[work.name]}
