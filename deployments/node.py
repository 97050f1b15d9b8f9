"""Facts about the node a process runs on, from Ray."""

import os
import secrets

import ray
from ray import serve

from kv.node_pools import life_of


def node_address() -> str:
    """The address under which other nodes reach this one."""
    node_id = ray.get_runtime_context().get_node_id()
    return next(
        str(node["NodeManagerAddress"]) for node in ray.nodes() if node["NodeID"] == node_id
    )


def application_name() -> str:
    """The Serve application that this replica is part of."""
    return serve.get_replica_context().app_name


def node_life() -> str:
    """Names the time for which Ray's processes on this node belong together: its raylet's life."""
    return life_of(os.getppid())  # which starts all of Ray's workers itself


def new_router_id() -> str:
    """A name no other router has had."""
    return f"router-{secrets.token_hex(4)}"


def new_engine_id() -> str:
    """A name no other engine has had: a restarted engine is a new one."""
    return f"engine-{secrets.token_hex(4)}"


def new_client_index() -> int:
    """A gateway's first number towards engines. Random: gateways do not know of each other."""
    return secrets.randbits(48) + 1  # 0 is the replica's own
