"""The line to an engine process reports what became of it."""

from pathlib import Path

import psutil
import pytest

from app.demo_model import write_demo_model
from app.settings import AppArgs
from ops.bench.displace import make_trial
from ops.bench.errors import EngineFailedError
from ops.bench.stepped import stepped_engine

END_WITHIN_S = 120.0  # vLLM is imported before the settings are refused


@pytest.fixture
def broken(tmp_path: Path) -> AppArgs:
    """Settings that vLLM refuses."""
    write_demo_model(tmp_path / "tiny", "tiny")
    model = str(tmp_path / "tiny")
    return AppArgs(model=model, device="cpu", replicas=1, engine_args={"no_such": 1})


@pytest.mark.engine
def test_an_engine_that_ends_while_it_is_asked_is_quoted(broken: AppArgs) -> None:
    """The last thing the process said is the reason."""
    larger_than_a_pipe = make_trial("0", 100_000)
    with (
        stepped_engine("broken", broken, left_out=()) as engine,
        pytest.raises(EngineFailedError, match=r"mode broken ended: TypeError.*no_such"),
    ):
        engine.ask(larger_than_a_pipe)


@pytest.mark.engine
def test_an_engine_that_has_ended_is_quoted(broken: AppArgs) -> None:
    """Also when its end shows only as the message is flushed."""
    others = psutil.Process().children()
    with stepped_engine("broken", broken, left_out=()) as engine:
        [process] = {*psutil.Process().children()} - {*others}
        _, alive = psutil.wait_procs([process], timeout=END_WITHIN_S)
        assert not alive
        with pytest.raises(EngineFailedError, match=r"mode broken ended: TypeError.*no_such"):
            engine.ask(make_trial("0", 1))
