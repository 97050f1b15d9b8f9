"""Pushing a process's metrics to a Prometheus Pushgateway, from a thread of its own.

Owns when is pushed and what is left at the Pushgateway when the process ends; what is pushed is
the registry's affair. No request and no event loop ever waits for a push: the thread alone meets
a Pushgateway that is away, slow or answers errors, and says so once. A group that a crashed
process could not remove is removed by its fleet's router (`ops.metrics.stale_groups`).
"""

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from prometheus_client import delete_from_gateway, push_to_gateway
from prometheus_client.registry import Collector

logger = logging.getLogger("ray.serve")

TIMEOUT_S = 5.0  # for each wait on the socket
STOP_S = 2.0  # how long the end of a process may wait for the last word
MAX_WAIT_S = 60.0  # between two pushes, or tries: past it a process counts as gone
MAX_CORE_SHARE = 0.008  # of one core for pushing: with more to push, pushes come less often


@dataclass(frozen=True, slots=True)
class PushTarget:
    """Where to push, and how often while all is well."""

    url: str
    every_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Group:
    """Whose metrics they are: the labels by which a Pushgateway keeps them apart."""

    job: str  # the deployment
    instance: str  # the replica
    application: str

    @property
    def key(self) -> dict[str, str]:
        """The labels beside ``job``, which Prometheus' client takes apart."""
        return {"instance": self.instance, "application": self.application}


class Pace:
    """When to push next.

    After a push in ``every_s``, and later (up to ``MAX_WAIT_S``) where pushing took so long that it
    would otherwise cost more than ``MAX_CORE_SHARE`` of a core. After a failure ever later, at
    random times: the processes of a fleet must not all return to a Pushgateway in the same moment.
    """

    def __init__(self, every_s: float, random: Random) -> None:
        self._every_s = every_s
        self._random = random
        self._num_failures = 0

    def first(self) -> float:
        return self._random.uniform(0.0, self._every_s)

    def after_push(self, cpu_s: float) -> float:
        self._num_failures = 0
        return max(self._every_s, _affordable_wait_s(cpu_s))

    def after_failure(self, cpu_s: float) -> float:
        # Ten doublings are past any back-off.
        self._num_failures = min(self._num_failures + 1, 10)
        longest_s = min(self._every_s * 2**self._num_failures, MAX_WAIT_S)
        wait_s = self._random.uniform(longest_s / 2, longest_s)
        return max(wait_s, self._every_s, _affordable_wait_s(cpu_s))


def _affordable_wait_s(cpu_s: float) -> float:
    return min(cpu_s / MAX_CORE_SHARE, MAX_WAIT_S)


class Pusher:
    """Pushes ``registry`` from ``start`` to ``stop``. ``after_push`` is a chore for its thread."""

    def __init__(
        self,
        registry: Collector,
        target: PushTarget,
        group: Group,
        pace: Pace | None = None,
        after_push: Callable[[], None] = lambda: None,
    ) -> None:
        self._registry = registry
        self._url = target.url
        self._group = group
        self._pace = pace or Pace(target.every_s, Random())
        self._after_push = after_push
        self._is_away = False
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="metrics push", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Remove what was pushed; returns after ``STOP_S`` even if the Pushgateway is slow."""
        self._ended.set()
        if self._thread.ident is not None:
            self._thread.join(STOP_S)

    def _run(self) -> None:
        wait_s = self._pace.first()
        while not self._ended.wait(wait_s):
            wait_s = self._push()
        self._remove()

    def _push(self) -> float:
        """Push once; the result is how long to wait then."""
        begun_s = time.thread_time()
        try:
            push_to_gateway(
                self._url, self._group.job, self._registry, self._group.key, timeout=TIMEOUT_S
            )
            self._after_push()
        except Exception as error:  # noqa: BLE001  (whatever it is, this thread has to go on)
            self._note_away(error)
            return self._pace.after_failure(time.thread_time() - begun_s)
        self._note_back()
        return self._pace.after_push(time.thread_time() - begun_s)

    def _remove(self) -> None:
        try:
            delete_from_gateway(self._url, self._group.job, self._group.key, timeout=STOP_S)
        except Exception as error:  # noqa: BLE001  (the process ends, whatever it is)
            logger.info("Metrics were left at %s, its router removes them: %s", self._url, error)

    def _note_away(self, error: Exception) -> None:
        if not self._is_away:
            logger.warning("Metrics cannot be pushed to %s, trying on: %s", self._url, error)
        self._is_away = True

    def _note_back(self) -> None:
        if self._is_away:
            logger.warning("Metrics are pushed to %s again", self._url)
        self._is_away = False
