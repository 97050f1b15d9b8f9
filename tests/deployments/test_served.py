"""Plain deployment classes as Serve replicas: started when constructed, stopped when deleted."""

import gc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp

from deployments.served import served, served_app


class Plain:
    """A deployment class that notes what is done with it."""

    def __init__(self, events: list[str], *, fails: bool = False) -> None:
        self.events = events
        self._fails = fails

    async def start(self) -> None:
        if self._fails:
            raise ValueError("it could not start")
        self.events.append("started")

    async def stop(self) -> None:
        self.events.append("stopped")

    @property
    def is_idle(self) -> bool:
        return False


@pytest.fixture(autouse=True)
def own_heap() -> Iterator[None]:
    """The heap of the tests' process is collected as before, whatever a replica did to it."""
    yield
    gc.unfreeze()
    gc.enable()


async def constructed(cls: Any, **settings: Any) -> Any:
    """An instance, made as Serve makes it."""
    instance = cls.__new__(cls)
    await instance.__init__(**settings)
    return instance


async def delete(instance: Any, plain: type) -> None:
    """Delete as Serve does, and keep the garbage collector from doing it once more."""
    await instance.__del__()
    instance.__class__ = plain


async def test_a_replica_lives_from_its_construction_to_its_deletion() -> None:
    """Start and stop are called for it, once each."""
    events: list[str] = []
    replica = await constructed(served(Plain), events=events)
    assert events == ["started"]

    await delete(replica, Plain)
    assert events == ["started", "stopped"]


async def test_what_a_replica_has_loaded_is_no_longer_walked_for_garbage() -> None:
    """Once it has started, collections look at what comes later, and do not come by themselves."""
    gc.unfreeze()
    replica = await constructed(served(Plain), events=[])
    assert gc.get_freeze_count() > 0
    assert not gc.isenabled()
    await delete(replica, Plain)


async def test_a_replica_that_cannot_start_says_why() -> None:
    """The constructor raises what the class raised, so that Serve shows it."""
    cls: Any = served(Plain)
    replica = cls.__new__(cls)
    with pytest.raises(ValueError, match="it could not start"):
        await replica.__init__(events=[], fails=True)
    await delete(replica, Plain)


@pytest.mark.parametrize("wrap", [served, served_app])
def test_a_wrapped_class_keeps_its_name(wrap: Callable[[type], type]) -> None:
    """Serve's status and logs speak of the class that people know."""

    class Gateway(Plain):
        async def build(self) -> ASGIApp:
            return PlainTextResponse("hello")

    assert wrap(Gateway).__name__ == "Gateway"
