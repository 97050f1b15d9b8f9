"""The application on a cluster of two nodes, started as docs/operating.md says.

Owns what an operator does (Ray on each node, ``serve deploy``, a new node in the place of a lost
one) and finding the parts wherever they run. ``nodes`` owns what a node is. The first node is
Ray's head and stays; it has the address that clients use.
"""

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from tests.cluster.nodes import Node, Wire, wire
from tests.cluster.program import wait_until

SERVE = Path(sys.executable).with_name("serve")
APPLICATION = "fastswitch"
HTTP_PORT = 8000
GATEWAY_PORTS = range(30_000, 30_003)  # Serve gives a node's gateways the first that is free
SPREAD = [
    {"name": "Engine", "max_replicas_per_node": 1},
    {"name": "Gateway", "max_replicas_per_node": 1, "max_surge_percent": 0},
]
READY_WITHIN_S = 300.0
# As docs/operating.md says; what it leaves open is short here, so that a test sees the end of it.
ENVIRONMENT: Mapping[str, str] = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
    "RAY_worker_niceness": "0",
    "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "3600",
    "RAY_SERVE_HAPROXY_TIMEOUT_SERVER_S": "45",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_health_check_timeout_ms": "3000",
    "RAY_health_check_period_ms": "1000",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": "of-these-nodes-alone-and-for-this-test",
}


class TwoNodes:
    """A head, and a second node that may be lost and replaced."""

    def __init__(self, wire: Wire, folder: Path) -> None:
        self._wire, self._folder = wire, folder
        self._num_started = 0
        self.head = self._start_node(None)
        try:
            self.second = self._start_node(self.head)
        except BaseException:
            self.head.kill()
            raise

    @property
    def nodes(self) -> tuple[Node, Node]:
        return self.head, self.second

    @property
    def host(self) -> str:
        """This process's own address as the nodes see it."""
        return self._wire.host

    @property
    def url(self) -> str:
        return f"http://{self.head.address}:{HTTP_PORT}"

    def parts(self, name: str) -> list[psutil.Process]:
        """All processes of one kind, on whichever node."""
        return [process for node in self.nodes for process in node.parts(name)]

    def deploy(self, args: Mapping[str, Any]) -> None:
        """Returns when both gateways answer, each over an engine of whichever node."""
        config = {
            "proxy_location": "EveryNode",
            "http_options": {"host": "0.0.0.0", "port": HTTP_PORT},  # noqa: S104  (on the wire)
            "logging_config": {"log_level": "WARNING", "enable_access_log": False},
            "applications": [
                {
                    "name": APPLICATION,
                    "route_prefix": "/",
                    "import_path": "app.build:build",
                    "args": dict(args),
                    "deployments": SPREAD,
                }
            ],
        }
        path = self._folder / "serve_config.yaml"
        path.write_text(yaml.safe_dump(config))
        self.head.run(SERVE, "deploy", path, "--address", self.head.dashboard)
        for node in self.nodes:
            wait_until(
                lambda node=node: gateway_on(node) is not None,  # type: ignore[misc]
                "the node's gateway answers",
                within_s=READY_WITHIN_S,
            )

    def replace_second(self) -> None:
        """Put a new machine in the place of the second, as whoever runs the cluster would."""
        self.second.kill()
        self.second = self._start_node(self.head)

    def close(self) -> None:
        for node in self.nodes:
            node.kill()

    def _start_node(self, head: Node | None) -> Node:
        self._num_started += 1
        number = 1 + self._num_started
        node = Node(self._wire, number, self._folder / f"node-{number}", ENVIRONMENT)
        try:
            node.start_ray(head)
        except BaseException:
            node.kill()
            raise
        return node


@contextmanager
def two_nodes(folder: Path) -> Iterator[TwoNodes]:
    """Ray on two nodes; nothing of them is left in the end."""
    with wire() as between:
        cluster = TwoNodes(between, folder)
        try:
            yield cluster
        finally:
            cluster.close()


def gateway_on(node: Node) -> str | None:
    """The name of the gateway on a node, once it is well; None while none is."""
    for port in GATEWAY_PORTS:
        with suppress(httpx.HTTPError):
            answer = httpx.get(f"http://{node.address}:{port}/health", timeout=2)
            if answer.status_code == httpx.codes.OK:
                return answer.headers["x-served-by"]
    return None
