"""The host memory of an engine that is killed, in the hands of its neighbours and successors."""

import os
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

from app.engine_settings import engine_args, engine_environment
from app.settings import AppArgs
from deployments.engine_order import EngineOrder
from deployments.engine_process import EngineProcess
from deployments.engine_replica import EngineLine
from deployments.errors import EngineStartError
from deployments.messages import EngineCard
from kv.node_pools import application_folder, life_of
from scheduler.reports import SwitchCounts
from tests.deployments.conftest import MAX_NUM_SEQS, RunningEngine
from tests.deployments.engine_client import EngineClient
from tests.deployments.engine_watch import Watch
from tests.deployments.stand_ins import HOST, ROOT, until

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

VOCABULARY = 256
PROMPT_TOKENS = 1500
TURN_TOKENS, SWITCHED_TOKENS, ENDLESS = 40, 400, 6000  # that are asked for
QUESTION = [1, 2, 3]

Asked = tuple[Sequence[int], int]  # a prompt, and how many tokens it is to be answered with


@dataclass(frozen=True)
class LivingEngine:
    """A real engine whose host memory may outlive it, as its replica sees it."""

    process: EngineProcess
    card: EngineCard
    watch: Watch

    async def switches(self) -> SwitchCounts:
        return (await self.watch.progress()).switches

    async def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        await until(self.has_ended)

    def has_ended(self) -> bool:
        try:
            self.process.check_alive()
        except EngineStartError:
            return True
        return False


@asynccontextmanager
async def started(args: AppArgs, pools: Path) -> AsyncIterator[LivingEngine]:
    arguments = engine_args(args, args.model, on_cuda=False)
    environment = engine_environment(args, on_cuda=False, num_cores=2)
    order = EngineOrder("engine-real", HOST, arguments, pools_folder=str(pools))
    process = EngineProcess(order, {**environment, "PYTHONPATH": ROOT})
    card = await process.ready()
    try:
        with closing(EngineLine(card)) as line:
            await line.open(process.check_alive)
            yield LivingEngine(process, card, Watch(line))
    finally:
        await process.stop()


def prompts(seed: int, num: int) -> list[list[int]]:
    choose = Random(seed)
    return [[choose.randrange(VOCABULARY) for _ in range(PROMPT_TOKENS)] for _ in range(num)]


async def answers(client: EngineClient, name: str, asked: Sequence[Asked]) -> list[list[int]]:
    for number, (prompt, num_tokens) in enumerate(asked):
        await client.add(f"{name}-{number}", prompt, max_tokens=num_tokens)
    for number in range(len(asked)):
        await client.end_of(f"{name}-{number}")
    return so_far(client, name, len(asked))


def so_far(client: EngineClient, name: str, num: int) -> list[list[int]]:
    return [list(client.tokens[f"{name}-{number}"]) for number in range(num)]


async def have_begun(client: EngineClient, name: str, asked: Sequence[Asked], rank: int) -> None:
    for number, (prompt, num_tokens) in enumerate(asked):
        await client.add(f"{name}-{number}", prompt, max_tokens=num_tokens, priority=rank)
    await until(lambda: all(so_far(client, name, len(asked))))


async def test_a_neighbour_goes_on_with_the_host_memory_of_a_killed_engine(
    engine: RunningEngine, engine_settings: AppArgs, tmp_path: Path, seed: int
) -> None:
    """Of the turns kept there 90 % is loaded at least, while nobody has taken the memory over."""
    pools = application_folder(life_of(os.getpid()), "test", tmp_path)
    args = engine_settings.model_copy(update={"host_kv_gib": 0.06})
    turns = prompts(seed, 4)

    async with started(args, pools) as neighbour, started(args, pools) as other:
        async with EngineClient(other.card) as client:
            answered = await answers(client, "turn", [(prompt, TURN_TOKENS) for prompt in turns])
            await answers(client, "later", [(QUESTION, TURN_TOKENS)])  # all has landed by its end
            await other.kill()
        done = [prompt + tokens for prompt, tokens in zip(turns, answered, strict=True)]
        following = [(tokens + QUESTION, TURN_TOKENS) for tokens in done]
        async with EngineClient(neighbour.card) as client:
            next_answers = await answers(client, "next", following)
            after = await neighbour.switches()
        num_loaded = after.fetched_blocks * neighbour.card.block_tokens

    assert num_loaded >= 0.9 * sum(map(len, done))
    assert (after.adopted_blocks, after.missed_blocks, after.failed_blocks) == (0, 0, 0)
    assert after.blocks_found == after.fetched_blocks
    async with EngineClient(engine.card) as client:
        assert await answers(client, "next", following) == next_answers


async def test_a_successor_goes_on_with_the_host_memory_of_a_killed_engine(
    engine: RunningEngine, engine_settings: AppArgs, tmp_path: Path, seed: int
) -> None:
    """Of swapped-out and finished turns 90 % is loaded at least, and all tokens are the same."""
    pools = application_folder(life_of(os.getpid()), "test", tmp_path)
    args = engine_settings.model_copy(update={"host_kv_gib": 0.06})
    turns, switched = prompts(seed, 3), prompts(seed + 1, MAX_NUM_SEQS)
    hurried = prompts(seed + 2, MAX_NUM_SEQS)

    async with started(args, pools) as first, EngineClient(first.card) as client:
        answered = await answers(client, "turn", [(prompt, TURN_TOKENS) for prompt in turns])
        await have_begun(client, "switched", [(one, SWITCHED_TOKENS) for one in switched], 5)
        await have_begun(client, "hurried", [(one, ENDLESS) for one in hurried], 0)
        assert (await first.switches()).swaps_out == len(switched)
        begun = so_far(client, "switched", len(switched))
        await first.kill()

    kept = [prompt + tokens for prompt, tokens in zip(switched, begun, strict=True)]
    rest = [
        (prompt, SWITCHED_TOKENS - len(tokens)) for prompt, tokens in zip(kept, begun, strict=True)
    ]
    done = [prompt + tokens for prompt, tokens in zip(turns, answered, strict=True)]
    following = [(tokens + QUESTION, TURN_TOKENS) for tokens in done]
    async with started(args, pools) as second, EngineClient(second.card) as client:
        went_on = await answers(client, "rest", rest)
        next_answers = await answers(client, "next", following)
        after = await second.switches()
    num_loaded = after.blocks_found * second.card.block_tokens

    assert num_loaded >= 0.9 * sum(map(len, kept + done))
    assert after.adopted_blocks >= after.blocks_found
    assert list(pools.iterdir()) == []  # the second engine was asked to end
    async with EngineClient(engine.card) as client:
        undisturbed = await answers(client, "switched", [(p, SWITCHED_TOKENS) for p in switched])
        assert undisturbed == [
            tokens + others for tokens, others in zip(begun, went_on, strict=True)
        ]
        assert await answers(client, "next", following) == next_answers
