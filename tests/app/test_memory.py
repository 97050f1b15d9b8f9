"""Whether the engines fit, before anything is started."""

from types import SimpleNamespace

import psutil
import pytest

from app.errors import TooLittleMemoryError
from app.memory import ENGINE_GIB, GIB, REST_GIB, check_memory
from app.settings import AppArgs

NEEDED_GIB = REST_GIB + 2 * (ENGINE_GIB + 0.5 + 0.25)
ARGS = AppArgs(replicas=2, kv_cache_gib=0.5, host_kv_gib=0.25)


def have(monkeypatch: pytest.MonkeyPatch, available_gib: float) -> None:
    machine = SimpleNamespace(available=int(available_gib * GIB))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: machine)


def test_engines_that_fit_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """Just enough is enough."""
    have(monkeypatch, NEEDED_GIB)
    check_memory(ARGS, on_cuda=False)


def test_too_little_memory_says_how_much_is_missing_and_what_to_change(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is needed, what there is, and the settings that lower it."""
    have(monkeypatch, NEEDED_GIB - 0.5)
    with pytest.raises(TooLittleMemoryError) as caught:
        check_memory(ARGS, on_cuda=False)

    message = str(caught.value)
    assert f"2 engines need {NEEDED_GIB:.1f} GiB" in message
    assert f"{NEEDED_GIB - 0.5:.1f} GiB are free" in message
    assert all(name in message for name in ("replicas", "kv_cache_gib", "host_kv_gib"))


def test_more_engines_need_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each has its own KV and its own host memory."""
    have(monkeypatch, NEEDED_GIB)
    more = ARGS.model_copy(update={"replicas": 3})
    with pytest.raises(TooLittleMemoryError):
        check_memory(more, on_cuda=False)


def test_on_a_gpu_the_kv_lies_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only host memory counts then."""
    have(monkeypatch, NEEDED_GIB)
    large = ARGS.model_copy(update={"kv_cache_gib": 80.0})
    check_memory(large, on_cuda=True)
    with pytest.raises(TooLittleMemoryError):
        check_memory(large, on_cuda=False)
