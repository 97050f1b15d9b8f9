"""Every error of every package: crosses processes whole, and reads as one sentence."""

import inspect
import pickle
import pkgutil
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

PACKAGES = ("app", "deployments", "scheduler", "kv", "ops")
SAMPLES: dict[Any, Any] = {
    str: "some text",
    int: 3,
    float: 1.5,
    Path: Path("folder/file"),
    datetime: datetime(2026, 5, 1, tzinfo=UTC),
    str | None: "some text",
    int | None: 3,
}


def error_modules() -> Iterator[Any]:
    """The ``errors.py`` of each package, wherever it stands."""
    for package in map(import_module, PACKAGES):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if found.name.endswith(".errors"):
                yield import_module(found.name)


ERRORS = [
    error
    for module in error_modules()
    for error in vars(module).values()
    if inspect.isclass(error) and error.__module__ == module.__name__
]


def make(error: type[Exception]) -> Exception:
    """One with its constructor's arguments made up."""
    parameters = inspect.signature(error.__init__).parameters.values()
    kinds = [each.annotation for each in parameters if each.annotation is not each.empty]
    return error(*(SAMPLES[kind] for kind in kinds)) if kinds else error("some text")


def test_all_packages_with_errors_are_looked_at() -> None:
    """A package that keeps its errors elsewhere would slip through."""
    assert {error.__module__ for error in ERRORS} >= {
        f"{package}.errors" for package in PACKAGES[:4]
    }


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_an_error_crosses_processes_whole(error: type[Exception]) -> None:
    """Ray pickles errors by their arguments: type, attributes and message all come through."""
    sent = make(error)
    received = pickle.loads(pickle.dumps(sent))  # noqa: S301 - our own bytes

    assert type(received) is error
    assert (received.args, vars(received), str(received)) == (sent.args, vars(sent), str(sent))


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_an_error_is_one_line(error: type[Exception]) -> None:
    """What people read fits a log line or an answer over HTTP."""
    message = str(make(error))

    assert message.strip() == message != ""
    assert "\n" not in message


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_an_error_stands_in_its_modules_tree(error: type[Exception]) -> None:
    """``errors.py`` opens with the tree of its errors, and a class is an error by its name."""
    module = inspect.getmodule(error)
    assert module is not None

    assert error.__name__ in (module.__doc__ or "")
    assert error.__name__.endswith("Error")
