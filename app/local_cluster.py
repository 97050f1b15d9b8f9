"""A Ray cluster of this machine alone, for ``fastswitch serve``: started, and stopped whole.

Owns the environment that Ray and Serve start with and the end of everything that was started,
HAProxy included. A cluster that others run is never touched: that one gets ``serve deploy``.
"""

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil

from app.ports import free_port

HOST = "127.0.0.1"
OBJECT_STORE_BYTES = 128 * 2**20  # nothing of ours passes through it
END_S = 5.0


@contextlib.contextmanager
def local_cluster(*, num_gpus: int | None) -> Iterator[str]:
    """Start Ray here; yields the dashboard's URL. On leaving, everything has ended."""
    run_folder = Path(tempfile.mkdtemp(prefix="fastswitch-"))
    os.environ.update(_environment(run_folder))
    import ray  # reads the environment while it is imported

    logging.getLogger("ray.serve").setLevel(logging.WARNING)

    dashboard_port = free_port(HOST)
    try:
        ray.init(
            address="local",
            num_gpus=num_gpus,
            include_dashboard=True,
            dashboard_host=HOST,
            dashboard_port=dashboard_port,
            object_store_memory=OBJECT_STORE_BYTES,
            _node_ip_address=HOST,
            namespace="serve",
            configure_logging=True,
            logging_level=logging.ERROR,
            log_to_driver=False,
        )
        yield f"http://{HOST}:{dashboard_port}"
    finally:
        _stop(run_folder)


def _environment(run_folder: Path) -> dict[str, str]:
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        # HAProxy in front, written in C, instead of Serve's own proxy.
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # One event loop per gateway: handing each token to another thread costs more than sending it.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        # Two of us on one machine must not share HAProxy's files and ports.
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(run_folder / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(run_folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(run_folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(run_folder / "server-state"),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port(HOST)),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port(HOST)),
    }


def _stop(run_folder: Path) -> None:
    import ray
    from ray import serve

    started = psutil.Process().children(recursive=True)
    with contextlib.suppress(Exception):  # half started or half dead: the rest is stopped below
        serve.shutdown()
    ray.shutdown()
    # HAProxy outlives a Serve that was killed, and would hold the port.
    started += [
        process
        for process in psutil.process_iter(["cmdline"])
        if str(run_folder / "haproxy.cfg") in (process.info["cmdline"] or [])
    ]
    _end(started)
    shutil.rmtree(run_folder, ignore_errors=True)


def _end(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=END_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
