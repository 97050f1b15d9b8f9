"""Engines for the tests of what happens inside vLLM."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from app.demo_model import write_demo_model

if TYPE_CHECKING:
    from tests.scheduler.engine_harness import Engine, Outputs

# Not imported above: most tests of this folder need no vLLM, and importing it takes seconds.


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint that a CPU runs at thousands of tokens a second."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_demo_model(folder, "tiny", seed=0)
    return folder


@pytest.fixture(scope="session")
def undisturbed(tiny_model: Path) -> "Outputs":
    """What plain vLLM, with room for all, answers to each request of the workloads."""
    from tests.scheduler.engine_harness import Engine, EngineSettings
    from tests.scheduler.workloads import WORKLOADS

    plain = Engine(tiny_model, EngineSettings(num_blocks=1024, is_plain_vllm=True))
    outputs = plain.run(work for works in WORKLOADS.values() for work in works)
    plain.shut_down()
    return outputs


@pytest.fixture(scope="session")
def started_engine(
    request: pytest.FixtureRequest, tiny_model: Path, undisturbed: "Outputs"
) -> "Iterator[Engine]":
    """An engine of the settings that the test names; asks for ``undisturbed`` to be over first."""
    from tests.scheduler.engine_harness import Engine

    del undisturbed
    engine = Engine(tiny_model, request.param)
    yield engine
    engine.shut_down()


@pytest.fixture
def engine(started_engine: "Engine") -> "Engine":
    """The engine, with nothing running and nothing cached."""
    started_engine.clear()
    return started_engine
