"""Where a process's metrics go out: pushed, scraped, both or neither.

Owns the process's own numbers (processor time, memory, files) and the life of its outlets. A
gateway needs no port of its own here: its metrics are on the users' port, under /metrics.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from threading import Thread
from wsgiref.simple_server import WSGIServer

from prometheus_client import (
    CollectorRegistry,
    PlatformCollector,
    ProcessCollector,
    start_http_server,
)
from prometheus_client.registry import Collector

from ops.metrics.push import Group, Pusher, PushTarget

logger = logging.getLogger("ray.serve")

NUM_PORTS = 100  # of one node's processes


@dataclass(frozen=True, slots=True)
class Outlets:
    """What the settings say; the same for every process. ``scrape_port`` is the first to try."""

    push: PushTarget | None = None
    scrape_port: int | None = None

    @property
    def is_any(self) -> bool:
        return self.push is not None or self.scrape_port is not None


class Outlet:
    """The outlets of one process, from ``open`` to ``close``.

    ``open`` returns at once. ``close`` takes half a second for the port, and for the last word to
    a Pushgateway up to ``ops.metrics.push.STOP_S``: no event loop should wait for it.
    """

    def __init__(
        self,
        registry: CollectorRegistry,
        outlets: Outlets,
        group: Group,
        host: str,
        after_push: Callable[[], None] = lambda: None,
    ) -> None:
        self._registry = registry
        self._scrape_port = outlets.scrape_port
        self._host = host
        self._server: tuple[WSGIServer, Thread] | None = None
        self._pusher: Pusher | None = None
        if outlets.push is not None:
            self._pusher = Pusher(registry, outlets.push, group, after_push=after_push)

    @property
    def port(self) -> int | None:
        """Where this process can be scraped."""
        return self._server[0].server_port if self._server else None

    def open(self) -> None:
        if self._scrape_port is not None:
            self._listen(self._scrape_port)
        if self._pusher is not None:
            self._pusher.start()

    def close(self) -> None:
        if self._server is not None:
            self._server[0].shutdown()
            self._server[0].server_close()
        if self._pusher is not None:
            self._pusher.stop()

    def _listen(self, first: int) -> None:
        """Take the first port that no other process of this node has."""
        for port in range(first, first + NUM_PORTS):
            try:
                self._server = start_http_server(port, self._host, self._registry)
            except OSError:
                continue
            return
        # Not worth ending a process that serves.
        logger.warning(
            "No port of %s from %d to %d is free: this process's metrics cannot be scraped",
            self._host,
            first,
            first + NUM_PORTS - 1,
        )


def process_registry(*collectors: Collector) -> CollectorRegistry:
    """A registry with ``collectors`` and the numbers every process has."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    for collector in collectors:
        registry.register(collector)
    return registry
