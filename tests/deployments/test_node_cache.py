"""The host memory of an engine that is killed, in the hands of the engine that follows it."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from random import Random

import pytest

from app.engine_settings import engine_args, engine_environment
from app.settings import AppArgs
from deployments.engine_order import EngineOrder
from deployments.engine_process import EngineProcess
from deployments.engine_replica import EngineLine
from deployments.messages import EngineCard
from kv.node_pools import application_folder, life_of
from scheduler.reports import SwitchCounts
from tests.deployments.conftest import MAX_NUM_SEQS, RunningEngine
from tests.deployments.engine_client import EngineClient
from tests.deployments.engine_watch import Watch
from tests.deployments.stand_ins import HOST, ROOT, until

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

VOCABULARY = 256
PROMPT_TOKENS, ANSWER_TOKENS = 1500, 400
ENDLESS = 6000


class LivingEngine:
    """A real engine with its pools in a folder, and the replica's view of it."""

    def __init__(self, process: EngineProcess, card: EngineCard, watch: Watch) -> None:
        self.process, self.card, self.watch = process, card, watch

    async def switches(self) -> SwitchCounts:
        return (await self.watch.progress()).switches

    async def kill(self) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        await until(lambda: self.process._process.returncode is not None)


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


async def answers(client: EngineClient, name: str, wanted: list[tuple[list[int], int]]) -> None:
    """Run requests to their end; their tokens are under ``name-0``, ``name-1`` ..."""
    for number, (prompt, max_tokens) in enumerate(wanted):
        await client.add(f"{name}-{number}", prompt, max_tokens=max_tokens)
    for number in range(len(wanted)):
        await client.end_of(f"{name}-{number}")


async def test_a_successor_goes_on_with_what_a_killed_engine_had_in_host_memory(
    engine: RunningEngine, engine_settings: AppArgs, tmp_path: Path, seed: int
) -> None:
    """Both swapped-out requests and finished turns: at least 90 % is loaded, and no token differs."""
    pools = application_folder(life_of(os.getpid()), "test", tmp_path)
    args = engine_settings.model_copy(update={"host_kv_gib": 0.06})
    turns, switched = prompts(seed, 3), prompts(seed + 1, MAX_NUM_SEQS)
    hurried = prompts(seed + 2, MAX_NUM_SEQS)

    async with started(args, pools) as first, EngineClient(first.card) as client:
        await answers(client, "turn", [(prompt, 40) for prompt in turns])
        for number, prompt in enumerate(switched):
            await client.add(f"switched-{number}", prompt, max_tokens=ANSWER_TOKENS, priority=5)
        await until(lambda: all(client.tokens[f"switched-{n}"] for n in range(MAX_NUM_SEQS)))
        for number, prompt in enumerate(hurried):
            await client.add(f"hurried-{number}", prompt, max_tokens=ENDLESS, priority=0)
        await until(lambda: all(client.tokens[f"hurried-{n}"] for n in range(MAX_NUM_SEQS)))
        before = await first.switches()
        tokens = dict(client.tokens)
        print("before", before)
        await first.kill()

    went_on = [
        (prompt + tokens[f"switched-{number}"], ANSWER_TOKENS - len(tokens[f"switched-{number}"]))
        for number, prompt in enumerate(switched)
    ]
    next_turns = [(prompt + tokens[f"turn-{n}"] + [1, 2, 3], 40) for n, prompt in enumerate(turns)]
    async with started(args, pools) as second, EngineClient(second.card) as client:
        await answers(client, "on", went_on)
        await answers(client, "next", next_turns)
        after = await second.switches()
        found = dict(client.tokens)
    print("after", after, second.card.block_tokens)
    assert 0
