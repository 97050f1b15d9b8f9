"""One real engine for all tests of this folder that need one, in its own process."""

from collections.abc import AsyncIterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from app.demo_model import write_demo_model
from app.engine_settings import engine_args, engine_environment
from app.ports import free_port
from app.settings import AppArgs, TracingSettings
from deployments.engine_order import EngineOrder
from deployments.engine_process import EngineProcess
from deployments.engine_replica import EngineLine
from deployments.errors import EngineStartError
from deployments.messages import EngineCard
from ops.metrics.outlet import Outlets
from tests.deployments.engine_watch import Watch
from tests.deployments.stand_ins import HOST, ROOT

MAX_NUM_SEQS = 4
MAX_MODEL_LEN = 8192  # long enough for a request that does not end during a test
KV_GIB = 0.1
STUCK_S = 4.0
CLIENT_SILENCE_S = 4.0  # gateways say hello every second, and a shared machine may pause


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that a CPU runs at thousands of tokens a second."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_demo_model(folder, "tiny")
    return folder


@pytest.fixture(scope="session")
def engine_settings(tiny_model: Path) -> AppArgs:
    return AppArgs(
        model=str(tiny_model),
        device="cpu",
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=MAX_NUM_SEQS,
        kv_cache_gib=KV_GIB,
        host_kv_gib=0.03,
        engine_args={"enforce_eager": True},
        # So that it tells what becomes of requests, which else it does not.
        tracing=TracingSettings(otlp_endpoint="http://127.0.0.1:4318"),
    )


@dataclass(frozen=True)
class RunningEngine:
    process: EngineProcess
    card: EngineCard
    metrics_port: int


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def engine(engine_settings: AppArgs) -> AsyncIterator[RunningEngine]:
    """The running engine; at the end it is asked to stop, and does so by itself."""
    arguments = engine_args(engine_settings, engine_settings.model, on_cuda=False)
    environment = engine_environment(engine_settings, on_cuda=False, num_cores=2)
    outlets = Outlets(scrape_port=free_port(HOST))
    order = EngineOrder(
        "engine-real",
        HOST,
        arguments,
        outlets=outlets,
        has_vllm_metrics=True,
        client_silence_s=CLIENT_SILENCE_S,
        stuck_s=STUCK_S,
    )
    process = EngineProcess(order, {**environment, "PYTHONPATH": ROOT})
    card = await process.ready()
    assert outlets.scrape_port is not None
    yield RunningEngine(process, card, outlets.scrape_port)
    await process.stop()
    with pytest.raises(EngineStartError, match="ended with status 0"):
        process.check_alive()


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def watch(engine: RunningEngine) -> AsyncIterator[Watch]:
    """A look inside the engine."""
    with closing(EngineLine(engine.card)) as line:
        await line.open(engine.process.check_alive)
        yield Watch(line)
