"""Serve's own port in a replica is open to its node's address alone."""

import grpc  # type: ignore[import-untyped]
import psutil
import pytest
from ray.serve._private import replica

from deployments import replica_port
from deployments.replica_port import keep_replica_port_to_node


@pytest.fixture
def _kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "add_port_to_grpc_server", replica.add_port_to_grpc_server)
    keep_replica_port_to_node()


@pytest.mark.usefixtures("_kept")
@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
async def test_the_port_is_opened_on_the_nodes_address(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Serve would listen everywhere, it listens where Ray does."""
    monkeypatch.setattr(replica_port, "node_address", lambda: address)
    server = grpc.aio.server()

    port = replica.add_port_to_grpc_server(server, "[::]:0")
    await server.start()

    try:
        assert listening_on(port) == {address}
    finally:
        await server.stop(None)


def listening_on(port: int) -> set[str]:
    return {
        connection.laddr.ip.removeprefix("::ffff:")
        for connection in psutil.Process().net_connections("tcp")
        if connection.status == "LISTEN" and connection.laddr.port == port
    }
