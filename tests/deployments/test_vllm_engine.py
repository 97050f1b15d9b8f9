"""The engine process: vLLM's core behind listening sockets, with any number of clients."""

import asyncio
import os
import signal
import sys
from contextlib import closing
from pathlib import Path

import httpx
import msgspec
import pytest
import zmq
import zmq.asyncio
from prometheus_client.parser import text_string_to_metric_families
from vllm.v1.engine import (
    EngineCoreEventType,
    EngineCoreReadyResponse,
    EngineCoreRequestType,
    FinishReason,
)

from app.engine_settings import DEFAULT_CPU_STEP_TOKENS
from deployments import wire
from deployments.engine_links import EngineLink
from deployments.engine_order import (
    CHANGES,
    DRAINING,
    ECHO,
    EXCHANGE,
    HEARTBEAT,
    PARTING,
    STAGE,
    EngineOrder,
)
from deployments.engine_process import EngineProcess
from deployments.errors import EngineStartError
from deployments.vllm_engine import CPU_NICENESS
from scheduler.reports import FinishedRequest
from tests.deployments.conftest import (
    CLIENT_SILENCE_S,
    KV_GIB,
    MAX_MODEL_LEN,
    MAX_NUM_SEQS,
    RunningEngine,
)
from tests.deployments.engine_client import PROMPT, EngineClient
from tests.deployments.engine_watch import Watch
from tests.deployments.held_thread import main_thread_held
from tests.deployments.stand_ins import HOST, ROOT, until

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="session")]

ADD, ABORT = EngineCoreRequestType.ADD.value, EngineCoreRequestType.ABORT.value
TOKEN_BYTES = 2 * 2 * 2 * 32 * 4  # K and V, layers, heads, head size, float32
ENDLESS = MAX_MODEL_LEN - len(PROMPT)  # output tokens: many seconds, and no test waits for it


class SilentLink(EngineLink):
    """A line that says hello until it is up, and then no more."""

    async def _beat(self) -> None:
        while not self.is_up:
            await self._input.send_multipart([HEARTBEAT, self._client])
            await asyncio.sleep(0.01)


class PausingLink(EngineLink):
    """A line that says hello often, but not while it ``is_paused``."""

    is_paused = False

    async def _beat(self) -> None:
        while True:
            if not self.is_paused:
                await self._input.send_multipart([HEARTBEAT, self._client])
            await asyncio.sleep(0.01)


async def test_the_card_says_what_the_engine_is(engine: RunningEngine) -> None:
    """How to reach it, what it can hold, and vLLM's own words for a gateway's vLLM."""
    card = engine.card
    ready = msgspec.msgpack.decode(card.ready, type=EngineCoreReadyResponse)

    assert (card.engine_id, card.max_num_seqs) == ("engine-real", MAX_NUM_SEQS)
    assert card.num_blocks == ready.num_gpu_blocks > 0
    assert card.block_tokens == ready.block_size > 0
    assert card.block_bytes == card.block_tokens * TOKEN_BYTES
    assert ready.max_model_len == MAX_MODEL_LEN


async def test_the_engine_has_the_memory_it_was_given(engine: RunningEngine) -> None:
    """Whatever the environment says of vLLM's own: the settings hold."""
    kv_bytes = engine.card.num_blocks * engine.card.block_tokens * TOKEN_BYTES
    assert 0.9 * KV_GIB * 2**30 < kv_bytes <= KV_GIB * 2**30


async def test_a_request_is_answered_token_by_token(engine: RunningEngine) -> None:
    """As many tokens as were asked for, the same ones each time, and how it ended."""
    async with EngineClient(engine.card) as client:
        await client.add("r1", max_tokens=12)
        assert await client.end_of("r1") is FinishReason.LENGTH
        await client.add("r2", max_tokens=12)
        await client.end_of("r2")

        assert len(client.tokens["r1"]) == 12
        assert client.tokens["r1"] == client.tokens["r2"]


async def test_the_engine_tells_vllms_own_metrics(engine: RunningEngine) -> None:
    """Those that vLLM counts in an engine are read at the engine's port, under its name."""
    async with EngineClient(engine.card) as client:
        await client.add("r1")
        await client.end_of("r1")

    async with httpx.AsyncClient() as http:
        answer = await http.get(f"http://{HOST}:{engine.metrics_port}/metrics")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    [usage] = families["vllm:kv_cache_usage_perc"].samples
    assert usage.labels["engine"] == "engine-real"
    queries = families["vllm:prefix_cache_queries"].samples
    assert sum(s.value for s in queries if s.name.endswith("_total")) >= len(PROMPT)
    assert "vllm:time_to_first_token_seconds" not in families  # a gateway's to count


async def test_clients_get_their_own_outputs_only(engine: RunningEngine) -> None:
    """Also when their requests run in the same steps."""
    async with EngineClient(engine.card) as one, EngineClient(engine.card) as other:
        for i in range(4):
            await one.add(f"one-{i}", max_tokens=30)
            await other.add(f"other-{i}", max_tokens=30)
        for client, name in ((one, "one"), (other, "other")):
            for i in range(4):
                await client.end_of(f"{name}-{i}")
            assert client.tokens.keys() == {f"{name}-{i}" for i in range(4)}
            assert all(len(tokens) == 30 for tokens in client.tokens.values())


async def test_an_exchange_sets_priorities_and_tells_the_progress(
    engine: RunningEngine, watch: Watch
) -> None:
    """Of the requests that are live, whose they are and how far; of those that ended, how."""
    async with EngineClient(engine.card) as client:
        await watch.progress()
        await client.add("r1", max_tokens=ENDLESS, extra_args={"fastswitch_tenant": "acme"})
        await until(lambda: client.tokens["r1"])
        await watch.progress({"r1": 7})

        async with asyncio.timeout(30):
            while [one.priority for one in (await watch.progress()).live] != [7]:
                pass
        [live] = (await watch.progress()).live
        assert (live.request_id, live.tenant, live.is_running) == ("r1", "acme", True)
        assert live.prompt_done == live.prompt_tokens == len(PROMPT)
        assert live.output_done > 0

        await client.abort("r1")
        finished: list[FinishedRequest] = []
        async with asyncio.timeout(30):
            while not finished:
                finished = (await watch.progress(is_full=False)).finished
        assert [(one.request_id, one.tenant, one.reason) for one in finished] == [
            ("r1", "acme", "abort")
        ]


async def test_a_traced_engine_tells_what_becomes_of_requests(
    engine: RunningEngine, watch: Watch
) -> None:
    """That they were switched out too; its replica hears nothing of it and goes on as ever."""
    async with EngineClient(engine.card) as client:
        for index in range(MAX_NUM_SEQS):
            await client.add(f"low-{index}", max_tokens=300, priority=9)
        await until(lambda: all(client.tokens.values()))
        await client.add("high", max_tokens=10, priority=0)
        for name in ["high", *(f"low-{index}" for index in range(MAX_NUM_SEQS))]:
            await client.end_of(name)
            await watch.progress()

    kinds = {name: [event.type for event in told] for name, told in client.events.items()}
    undisturbed = [EngineCoreEventType.QUEUED, EngineCoreEventType.SCHEDULED]
    switched_out = [*undisturbed, EngineCoreEventType.PREEMPTED, EngineCoreEventType.SCHEDULED]
    assert kinds["high"] == undisturbed
    assert switched_out in kinds.values()


async def test_an_aborted_request_is_gone(engine: RunningEngine, watch: Watch) -> None:
    """Running or waiting; aborting what never was, or is over, harms nobody."""
    async with EngineClient(engine.card) as client:
        names = [f"r{i}" for i in range(MAX_NUM_SEQS + 2)]
        for name in names:
            await client.add(name, max_tokens=ENDLESS)
        await until(lambda: client.tokens["r0"])
        assert await watch.live() == set(names)

        await client.abort(*names, "never")
        await client.abort(*names)
        assert await watch.live() == set()
        client.ends.update(dict.fromkeys(names, FinishReason.ABORT))


async def test_a_silent_clients_requests_are_ended_and_it_is_told(
    engine: RunningEngine, watch: Watch
) -> None:
    """A gateway that died leaves nothing running; one that was only slow sees its requests end."""
    async with (
        EngineClient(engine.card) as alive,
        EngineClient(engine.card, SilentLink) as silent,
    ):
        await alive.add("alive", max_tokens=ENDLESS)
        await silent.add("silent", max_tokens=ENDLESS)
        await until(lambda: alive.tokens["alive"] and silent.tokens["silent"])
        assert await watch.live() == {"alive", "silent"}

        assert await silent.end_of("silent") is FinishReason.ABORT
        assert await watch.live() == {"alive"}


async def test_an_engine_tells_its_clients_where_it_is_on_its_way_out(
    engine: RunningEngine, watch: Watch
) -> None:
    """At once and to all, while its requests go on; it takes requests of who has not heard yet."""
    async with EngineClient(engine.card) as one, EngineClient(engine.card) as other:
        await one.add("r1", max_tokens=ENDLESS)
        await until(lambda: one.tokens["r1"])
        try:
            for stage in (DRAINING, PARTING):
                await one.link.send([STAGE, stage])
                await until(lambda: not one.link.takes_requests)
                await until(lambda: not other.link.takes_requests)
                assert one.link.is_up
            await other.add("r2")
            assert await other.end_of("r2") is FinishReason.LENGTH
            assert await watch.live() == {"r1"}
        finally:
            await one.link.send([STAGE, ECHO])
        await until(lambda: one.link.takes_requests and other.link.takes_requests)


async def test_an_engine_whose_loop_hangs_says_so_and_goes_on(
    engine: RunningEngine, watch: Watch
) -> None:
    """Its threads still answer everybody; the replica's question is what they know it by."""
    async with EngineClient(engine.card) as client:
        assert engine.process.pid
        with main_thread_held(engine.process.pid):
            asked = asyncio.create_task(watch.progress())
            await until(lambda: not client.link.is_at_work)
            assert client.link.is_up
        await asked
        await until(lambda: client.link.takes_requests)
        await client.add("r1")
        assert await client.end_of("r1") is FinishReason.LENGTH


async def test_a_seeded_prompt_may_take_several_steps(engine: RunningEngine) -> None:
    """Steps within a prompt draw nothing: a seed's tokens are the same with its prompt cached.

    vLLM's own worker ends where a CPU's generator would have to be taken back.
    """
    prompt = [40 + index % 80 for index in range(3 * DEFAULT_CPU_STEP_TOKENS)]
    async with EngineClient(engine.card) as client:
        for request_id in ("in steps", "from the cache"):
            await client.add(request_id, prompt, temperature=1.0, seed=7)
            assert await client.end_of(request_id) is FinishReason.LENGTH

    assert client.tokens["in steps"] == client.tokens["from the cache"]


@pytest.mark.parametrize("held_up", ["engine alone", "gateway too"])
async def test_an_engine_that_was_held_up_ends_nobody(
    engine: RunningEngine, watch: Watch, held_up: str
) -> None:
    """While it cannot listen nobody is silent: neither by unread heartbeats nor by unsent ones."""
    assert engine.process.pid is not None
    async with EngineClient(engine.card, PausingLink) as client:
        assert isinstance(client.link, PausingLink)
        await client.add("r1", max_tokens=ENDLESS)
        await until(lambda: client.tokens["r1"])
        os.kill(engine.process.pid, signal.SIGSTOP)
        client.link.is_paused = held_up == "gateway too"
        try:
            await asyncio.sleep(CLIENT_SILENCE_S + 1)  # what is tested is time that passes
        finally:
            os.kill(engine.process.pid, signal.SIGCONT)
        await watch.progress()
        client.link.is_paused = False
        num_tokens = len(client.tokens["r1"])
        await until(lambda: len(client.tokens["r1"]) > num_tokens + 100)

        assert await watch.live() == {"r1"}


@pytest.mark.parametrize(
    "frames",
    [
        [ADD],
        [ADD, b"\xc1 is no msgpack"],
        [ADD, msgspec.msgpack.encode(["too", "few", "fields"])],
        [ADD, msgspec.msgpack.encode({"another": "shape"})],
        [ABORT],
        [ABORT, b"\xc1"],
        [ABORT, msgspec.msgpack.encode(5)],
        [ABORT, msgspec.msgpack.encode([5])],
        [HEARTBEAT],
        [EXCHANGE],
        [EXCHANGE, b"\xc1"],
        [EXCHANGE, msgspec.msgpack.encode([1, "yes"])],
        [CHANGES],
        [CHANGES, b"\xc1"],
        [CHANGES, msgspec.msgpack.encode([{"r1": "urgent"}])],
        [b""],
        [b"no such kind", b"content"],
        *([kind.value, b"\x90"] for kind in EngineCoreRequestType),
        [EngineCoreRequestType.UTILITY.value, msgspec.msgpack.encode([0, 1, "sleep", [1]])],
    ],
    ids=lambda frames: b"-".join(frames).hex()[:24],
)
async def test_what_cannot_be_read_is_dropped(engine: RunningEngine, frames: list[bytes]) -> None:
    """The engine goes on for everybody else; what is no gateway's business counts as unreadable."""
    async with EngineClient(engine.card) as client:
        await client.link.send(frames)
        await client.add("r1")
        assert await client.end_of("r1") is FinishReason.LENGTH
    engine.process.check_alive()


async def test_a_request_the_engine_cannot_take_ends_alone(engine: RunningEngine) -> None:
    """Its client is told that it failed, and others go on."""
    async with EngineClient(engine.card) as client:
        bad = msgspec.structs.replace(
            client.request("bad"), sampling_params=None, pooling_params=None
        )
        await client.send(ADD, bad)
        assert await client.end_of("bad") is FinishReason.ERROR

        await client.add("good")
        assert await client.end_of("good") is FinishReason.LENGTH


async def test_a_model_on_the_processor_leaves_it_to_those_who_carry_tokens(
    engine: RunningEngine,
) -> None:
    """The engine is nicer than the process that has started it."""
    own = os.getpriority(os.PRIO_PROCESS, 0)
    assert engine.process.pid is not None
    assert os.getpriority(os.PRIO_PROCESS, engine.process.pid) == min(own + CPU_NICENESS, 19)


async def test_strangers_get_nothing(engine: RunningEngine) -> None:
    """Without the engine's public key neither requests nor outputs pass."""
    wrong_key = zmq.curve_keypair()[0].decode()
    card = msgspec.structs.replace(engine.card, public_key=wrong_key)
    context = zmq.asyncio.Context.instance()
    with closing(
        wire.connect(context, zmq.DEALER, wire.Endpoint(card.output_address, card.public_key))
    ) as stranger:
        with closing(stranger.get_monitor_socket(zmq.EVENT_DISCONNECTED)) as monitor:
            await asyncio.wait_for(monitor.recv_multipart(), 30)
            stranger.disable_monitor()
        assert not await stranger.poll(0)


async def test_an_engine_ends_with_its_parent(tmp_path: Path) -> None:
    """When the parent's end of its input closes, also while it is still starting."""
    card_end, child_end = os.pipe()
    order = EngineOrder("orphan", HOST, {"model": str(tmp_path)}, card_fd=child_end)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "deployments.vllm_engine"),
        stdin=asyncio.subprocess.PIPE,
        pass_fds=(child_end,),
        env={**os.environ, "PYTHONPATH": ROOT},
    )
    os.close(child_end)
    await process.communicate(msgspec.json.encode(order) + b"\n")
    os.close(card_end)
    assert process.returncode == 0


async def test_an_engine_that_cannot_start_gives_vllms_own_reason(tmp_path: Path) -> None:
    """One sentence that says what was wrong, where the parent finds it."""
    (tmp_path / "config.json").write_text("{}")
    process = EngineProcess(
        EngineOrder("bad", HOST, {"model": str(tmp_path)}), {"PYTHONPATH": ROOT}
    )
    with pytest.raises(EngineStartError) as caught:
        await process.ready()

    assert caught.value.exit_status == 1
    assert "config.json" in caught.value.reason or "model_type" in caught.value.reason
    assert "\n" not in str(caught.value)
