"""The engine process as its parent sees it, with a stand-in for the program that it runs."""

import asyncio
import json
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from deployments import engine_process
from deployments.engine_order import EngineOrder
from deployments.engine_process import EngineProcess
from deployments.errors import EngineStartError
from tests.deployments.engine_program import LONG_LINE
from tests.deployments.stand_ins import ENGINE_PROGRAM, HOST, ROOT, until


@pytest.fixture(autouse=True)
def _stand_in_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_process, "MODULE", ENGINE_PROGRAM)


@asynccontextmanager
async def engine(act: str, **environment: str) -> AsyncIterator[EngineProcess]:
    """A process that does ``act``; whatever happens, it is gone in the end."""
    order = EngineOrder("engine-a", HOST, {"act": act})
    process = EngineProcess(order, {"PYTHONPATH": ROOT, **environment})
    try:
        yield process
    finally:
        if process.pid is not None and is_there(process.pid):
            os.kill(process.pid, signal.SIGKILL)


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_an_engine_hands_over_its_card() -> None:
    """It comes whole through a pipe of its own, from the process that was started."""
    async with engine("serve") as process:
        card = await process.ready()

        assert card.engine_id == "engine-a"
        assert json.loads(card.ready)["pid"] == process.pid
        process.check_alive()
        await process.stop()


async def test_an_engine_has_its_parents_environment_and_its_own() -> None:
    """What the replica says is added to what the replica itself has."""
    async with engine("serve", ANSWER="forty-two") as process:
        card = await process.ready()
        await process.stop()

    assert json.loads(card.ready)["answer"] == "forty-two"


@pytest.mark.parametrize(
    ("act", "status", "reason"),
    [
        ("refuse", 3, "the model is too large"),
        ("fall", 139, "Segmentation fault"),
        ("be_mute", 4, "it said nothing"),
        ("babble", 6, "\ufffd\ufffd"),
        ("no such act", 1, "KeyError: 'no such act'"),
    ],
)
async def test_an_engine_that_does_not_start_says_why(act: str, status: int, reason: str) -> None:
    """By its own marked line, else by its last one; with its exit status."""
    async with engine(act) as process:
        with pytest.raises(EngineStartError) as caught:
            await process.ready()

    assert (caught.value.exit_status, caught.value.reason) == (status, reason)
    assert str(caught.value) == f"engine engine-a ended with status {status}: {reason}"


async def test_an_engine_that_ends_later_is_found_out() -> None:
    """From its end on, asking after its health raises with its reason."""
    async with engine("serve") as process:
        card = await process.ready()
        os.kill(json.loads(card.ready)["pid"], signal.SIGKILL)

        with pytest.raises(EngineStartError, match="status -9"):
            await until(process.check_alive)


async def test_lines_of_any_length_pass(capfd: pytest.CaptureFixture[str]) -> None:
    """An engine is never held up by its own log, and its last words are still found."""
    async with engine("ramble") as process:
        await process.ready()
        seen: list[str] = []

        def has_ended() -> bool:
            seen.append(capfd.readouterr().err)
            return "that was all" in seen[-1]

        await until(has_ended)
        with pytest.raises(EngineStartError, match="that was all"):
            await until(process.check_alive)
    assert LONG_LINE[:1000] in "".join(seen)


async def test_an_engine_ends_when_it_is_asked_to() -> None:
    """Stopping waits for the end; stopping again, or what never started, is nothing."""
    async with engine("serve") as process:
        await process.stop()
        await process.ready()
        assert process.pid is not None
        await process.stop()
        await process.stop()

        assert not is_there(process.pid)


async def test_an_engine_that_will_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has a while to end by itself, and no longer."""
    monkeypatch.setattr(engine_process, "STOP_S", 0.1)
    async with engine("insist") as process:
        await process.ready()
        assert process.pid is not None
        await process.stop()

        assert not is_there(process.pid)


async def test_an_engine_may_be_stopped_while_it_starts() -> None:
    """Whoever waits for it is told that it ended."""
    async with engine("serve") as process:
        starting = asyncio.create_task(process.ready())
        await until(lambda: process.pid is not None)
        await process.stop()

        with pytest.raises(EngineStartError, match="status -15"):
            await starting
