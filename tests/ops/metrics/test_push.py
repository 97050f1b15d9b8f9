"""Metrics are pushed from a thread of their own, whatever state the Pushgateway is in."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.registry import Collector

from app.ports import free_port
from ops.metrics import push as push_module
from ops.metrics.push import MAX_CORE_SHARE, MAX_WAIT_S, Group, Pace, Pusher, PushTarget
from ops.metrics.stale_groups import MIN_STALE_S
from tests.ops.metrics.stand_in_pushgateway import (
    PATIENCE_S,
    StandInPushgateway,
    stand_in_pushgateway,
)

GROUP = Group("gateway", "gateway-1", "fastswitch")
PATH = "/metrics/job/gateway/application/fastswitch/instance/gateway-1"
AT_ONCE_S = 0.001


@pytest.fixture
def gateway() -> Iterator[StandInPushgateway]:
    with stand_in_pushgateway() as gateway:
        yield gateway


class Quick(Pace):
    """Pushes without a pause."""

    def __init__(self) -> None:
        super().__init__(AT_ONCE_S, Random(0))

    def after_failure(self, cpu_s: float) -> float:
        return AT_ONCE_S

    def after_push(self, cpu_s: float) -> float:
        return AT_ONCE_S


@contextmanager
def pushing(url: str, **settings: Any) -> Iterator[Pusher]:
    registry: CollectorRegistry = CollectorRegistry()
    Counter("made", "Things made.", registry=registry).inc(3)
    pusher = Pusher(registry, PushTarget(url), GROUP, **{"pace": Quick(), **settings})
    pusher.start()
    try:
        yield pusher
    finally:
        pusher.stop()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno == logging.WARNING]


def test_a_push_replaces_the_replicas_group(gateway: StandInPushgateway) -> None:
    """Deployment, replica and application name the group; PUT leaves nothing old in it."""
    with pushing(gateway.url):
        call = gateway.next_call()

    assert (call.method, call.path) == ("PUT", PATH)
    assert "made_total 3.0" in call.body


def test_the_end_of_a_process_takes_its_group_away(gateway: StandInPushgateway) -> None:
    """A Pushgateway would show the last numbers of a process that is gone for ever."""
    with pushing(gateway.url):
        gateway.next_call()

    assert gateway.call_with("", method="DELETE").path == PATH
    assert gateway.calls.empty()


@pytest.mark.parametrize("status", [HTTPStatus.INTERNAL_SERVER_ERROR, HTTPStatus.BAD_REQUEST])
def test_a_pushgateway_that_answers_errors_is_said_once_and_when_it_is_back(
    gateway: StandInPushgateway, caplog: pytest.LogCaptureFixture, status: HTTPStatus
) -> None:
    """One line when it begins, one when it ends, however many pushes failed between."""
    gateway.status = status
    with caplog.at_level(logging.WARNING), pushing(gateway.url):
        for _ in range(5):
            gateway.next_call()
        gateway.status = HTTPStatus.OK
        for _ in range(3):  # the second was begun after the status changed, the third after it
            gateway.next_call()

    away, back = warnings(caplog)
    assert away.startswith(f"Metrics cannot be pushed to {gateway.url}, trying on: ")
    assert str(int(status)) in away
    assert back == f"Metrics are pushed to {gateway.url} again"


def test_a_pushgateway_that_is_away_is_found_when_it_comes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A process that starts before its Pushgateway pushes once that is there."""
    away = f"http://127.0.0.1:{free_port('127.0.0.1')}"
    failed = threading.Event()

    class Failing(Quick):
        def after_failure(self, cpu_s: float) -> float:
            failed.set()
            return super().after_failure(cpu_s)

    with pushing(away, pace=Failing()):
        assert failed.wait(PATIENCE_S)

    assert len(warnings(caplog)) == 1


def test_a_slow_pushgateway_holds_nobody_up(
    gateway: StandInPushgateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who stops a process with a push under way waits a bounded time; the push is its thread's."""
    monkeypatch.setattr(push_module, "STOP_S", 0.05)
    gateway.is_open.clear()

    with pushing(gateway.url) as pusher:
        gateway.next_call()
        pusher.stop()
        assert not gateway.is_open.is_set()


def test_what_a_push_takes_says_when_the_next_one_is(gateway: StandInPushgateway) -> None:
    """It is the processor time of collecting and sending that makes the pause longer."""
    collecting_s, waits_s = 0.02, []

    class Dear(Collector):
        def collect(self) -> Any:
            until_s = time.thread_time() + collecting_s
            while time.thread_time() < until_s:
                continue
            return []

    class Noting(Quick):
        def after_push(self, cpu_s: float) -> float:
            waits_s.append(Pace.after_push(self, cpu_s))
            return super().after_push(cpu_s)

    pusher = Pusher(Dear(), PushTarget(gateway.url), GROUP, pace=Noting())
    pusher.start()
    for _ in range(2):  # the second is begun when the first has been accounted for
        gateway.next_call()
    pusher.stop()

    assert waits_s[0] >= collecting_s / MAX_CORE_SHARE


def test_a_metric_that_fails_ends_no_pushing(gateway: StandInPushgateway) -> None:
    """A collector that raises costs its pushes; the thread goes on to the next."""

    class FailsOnce(Collector):
        has_failed = False

        def collect(self) -> Any:
            if not self.has_failed:
                self.has_failed = True
                raise ZeroDivisionError
            return []

    pusher = Pusher(FailsOnce(), PushTarget(gateway.url), GROUP, pace=Quick())
    pusher.start()
    call = gateway.next_call()
    pusher.stop()

    assert call.method == "PUT"


def test_a_chore_is_done_after_each_push(gateway: StandInPushgateway) -> None:
    """Whoever looks after the Pushgateway does so from the thread that may wait for it."""
    threads: set[str] = set()
    done = threading.Event()

    def chore() -> None:
        threads.add(threading.current_thread().name)
        done.set()

    with pushing(gateway.url, after_push=chore):
        assert done.wait(PATIENCE_S)

    assert threads == {"metrics push"}


@given(every_s=st.floats(1.0, 60.0), seed=st.integers(0, 1000), failures=st.integers(1, 40))
def test_failures_are_followed_by_ever_longer_pauses(
    every_s: float, seed: int, failures: int
) -> None:
    """Never sooner than a push would be, never later than the longest back-off or the interval."""
    pace = Pace(every_s, Random(seed))

    waits_s = [pace.after_failure(0.0) for _ in range(failures)]

    assert all(every_s <= wait_s <= max(every_s, MAX_WAIT_S) for wait_s in waits_s)
    longest_s = max(min(every_s * 2**failures, MAX_WAIT_S) / 2, every_s)
    assert waits_s[-1] >= longest_s
    assert pace.after_push(0.0) == every_s


def test_two_processes_do_not_come_back_in_the_same_moment() -> None:
    """A Pushgateway that was away is not met by the whole fleet at once."""
    first, second = Pace(10.0, Random(1)), Pace(10.0, Random(2))

    for pace in (first, second):
        pace.after_failure(0.0)
        pace.after_failure(0.0)

    assert first.after_failure(0.0) != second.after_failure(0.0)
    assert first.first() != second.first()


@given(cpu_s=st.floats(0.0, MAX_WAIT_S * MAX_CORE_SHARE), fails=st.booleans())
def test_pushing_never_costs_more_than_its_share_of_a_core(cpu_s: float, *, fails: bool) -> None:
    """Many tenants make a push long; then pushes come less often."""
    pace = Pace(10.0, Random(0))

    wait_s = pace.after_failure(cpu_s) if fails else pace.after_push(cpu_s)

    assert cpu_s / (cpu_s + wait_s) < MAX_CORE_SHARE < 0.01


def test_a_push_that_takes_very_long_does_not_make_a_process_look_gone() -> None:
    """However much there is to push, a living process pushes before its group counts as stale."""
    assert Pace(10.0, Random(0)).after_push(cpu_s=1000.0) == MAX_WAIT_S < MIN_STALE_S
