"""The port that Serve opens in every replica: on its node's address instead of everywhere.

Serve listens there for calls between deployments, on all networks, and unpickles whatever comes:
who can reach it can run code in the replica. We make no such calls, and Serve has no setting for
it, so the one function by which it opens the port is exchanged.
"""

from typing import Any

from ray._common.tls_utils import add_port_to_grpc_server
from ray.serve._private import replica

from deployments.node import node_address


def keep_replica_port_to_node() -> None:
    """Have this process's replica open its port on the node's address alone."""
    replica.add_port_to_grpc_server = _add_port_on_node


def _add_port_on_node(server: Any, _everywhere: str) -> int:
    address = node_address()
    host = f"[{address}]" if ":" in address else address
    port: int = add_port_to_grpc_server(server, f"{host}:0")
    return port
