"""What the Kubernetes manifest deploys, deployed on a Ray cluster of this machine.

The cluster is started as KubeRay starts one, by ``ray start`` with the manifest's environment. Of
what is deployed only that is changed which a pod has and this machine has not: the model, GPUs,
memory, a second node, addresses. Ports are free ones, so that other clusters may run beside it.
"""

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil
import pytest
import yaml

from app.ports import free_port
from kv.node_pools import remove_leftovers
from ops.metrics.stale_groups import groups_of
from tests.cluster.program import HOST, MARK, marked, wait_until
from tests.cluster.tenants import make_key
from tests.cluster.traffic import COMPLETIONS, completion
from tests.ops.prometheus import PROGRAMS, needs_prometheus, pushgateway

RAY, SERVE = (Path(sys.executable).with_name(name) for name in ("ray", "serve"))
MANIFEST = Path(__file__).parents[2] / "ops" / "manifests" / "rayservice.yaml"
OBJECT_STORE_BYTES = 128 * 2**20
DASHBOARD_WITHIN_S, READY_WITHIN_S, PUSHED_WITHIN_S = 60.0, 240.0, 60.0
# Ray would take up a token that lies in the user's home, and none where there is none.
TOKEN = "of-this-cluster-alone-and-for-this-test"

pytestmark = pytest.mark.cluster


@dataclass(frozen=True, slots=True)
class Deployed:
    """What the manifest says, served at ``url``. ``pushed_to`` is empty without a Pushgateway."""

    url: str
    key: str
    pushed_to: str


@pytest.fixture(scope="module")
def deployed(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Deployed]:
    folder, port = tmp_path_factory.mktemp("manifest"), free_port(HOST)
    [ray_service, *_] = yaml.safe_load_all(MANIFEST.read_text())
    config = yaml.safe_load(ray_service["spec"]["serveConfigV2"])
    config["http_options"] |= {"host": HOST, "port": port}
    [application] = config["applications"]
    tenants = folder / Path(application["args"]["tenants_file"]).name
    key = make_key(tenants, "alice")
    with ExitStack() as stack:
        pushed_to = ""
        if PROGRAMS["prometheus-pushgateway"]:
            pushed_to = stack.enter_context(pushgateway())
            application["args"]["metrics"] |= {"push_url": pushed_to, "push_s": 1}
        application["args"] |= {
            "model": str(tiny_model),
            "device": "cpu",
            "replicas": 1,
            "autoscaling": {"min_replicas": 1, "max_replicas": 1},
            "gateways": 1,
            "host_kv_gib": 0.125,
            "kv_cache_gib": 0.125,
            "max_num_seqs": 8,
            "tenants_file": str(tenants),
        }
        path = folder / "serve_config.yaml"
        path.write_text(yaml.safe_dump(config))
        dashboard = stack.enter_context(ray_cluster(folder / "log", port, pods_environment()))
        _run([SERVE, "deploy", path, "--address", dashboard], os.environ | pods_environment())
        served = Deployed(f"http://{HOST}:{port}", key, pushed_to)
        wait_until(
            lambda: _answers(f"{served.url}/health"), "it is served", within_s=READY_WITHIN_S
        )
        yield served


def pods_environment() -> dict[str, str]:
    """The environment of the manifest's pods, and the token that Ray's parts know each other by."""
    [ray_service, *_] = yaml.safe_load_all(MANIFEST.read_text())
    template = ray_service["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]
    [container] = template["spec"]["containers"]
    given = {each["name"]: each["value"] for each in container["env"] if "value" in each}
    return {**given, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN}


@contextmanager
def ray_cluster(log: Path, mark: int, environment: Mapping[str, str]) -> Iterator[str]:
    """A cluster of one node beside any other; yields its dashboard's address.

    Every process of it carries ``mark``, and none is left in the end.
    """
    dashboard_port = free_port(HOST)
    # Short: what lies in there are sockets, whose paths the kernel limits to 107 characters.
    with TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as folder:
        command = [
            *(str(RAY), "start", "--head", "--block", "--num-gpus=0", "--num-cpus=8"),
            *(f"--temp-dir={folder}", f"--object-store-memory={OBJECT_STORE_BYTES}"),
            *(f"--node-ip-address={HOST}", f"--port={free_port(HOST)}"),
            *(f"--dashboard-host={HOST}", f"--dashboard-port={dashboard_port}"),
            f"--dashboard-agent-listen-port={free_port(HOST)}",
            f"--ray-client-server-port={free_port(HOST)}",
        ]
        started_with = {**os.environ, **environment, **_of_its_own(folder), MARK: str(mark)}
        with log.open("wb") as output:
            process = subprocess.Popen(command, stdout=output, stderr=output, env=started_with)
        dashboard = f"http://{HOST}:{dashboard_port}"
        try:
            wait_until(
                lambda: _is_up(process, log, dashboard), "Ray is up", within_s=DASHBOARD_WITHIN_S
            )
            yield dashboard
        finally:
            _kill_all(mark)
            process.wait()
            remove_leftovers()


def _of_its_own(folder: str) -> dict[str, str]:
    """What a pod has to itself and clusters of one machine would share: HAProxy's files, ports."""
    return {
        # This machine alone: Ray then uses 127.0.0.1 for itself instead of the machine's address.
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_memory_monitor_refresh_ms": "0",
        "RAY_SERVE_HAPROXY_NBTHREAD": "1",
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/admin.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": folder,
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/server-state",
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port(HOST)),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port(HOST)),
        "RAY_SERVE_FALLBACK_PROXY_HTTP_PORT": str(free_port(HOST)),
    }


def _is_up(process: "subprocess.Popen[bytes]", log: Path, dashboard: str) -> bool:
    assert process.poll() is None, f"Ray has ended: {log.read_text()}"
    return _answers(f"{dashboard}/api/version", Authorization=f"Bearer {TOKEN}")


def _answers(url: str, **headers: str) -> bool:
    with suppress(httpx.HTTPError):
        return httpx.get(url, headers=headers, timeout=5).is_success
    return False


def _run(command: list[Any], environment: Mapping[str, str]) -> None:
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _kill_all(mark: int) -> None:
    """Until there are none: one that is killed may have started another in the moment before."""
    while left := marked(mark):
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left)


def test_what_the_manifest_deploys_is_served(deployed: Deployed) -> None:
    """Whoever has a key of the mounted file gets a completion; who has none is told so."""
    url, body = f"{deployed.url}{COMPLETIONS}", completion(max_tokens=5)

    nobody = httpx.post(url, json=body, timeout=60)
    alice = httpx.post(url, json=body, headers={"Authorization": f"Bearer {deployed.key}"})

    assert (nobody.status_code, alice.status_code) == (401, 200), alice.text
    assert alice.json()["usage"]["completion_tokens"] == 5


@needs_prometheus
def test_every_process_of_the_manifest_pushes(deployed: Deployed) -> None:
    """Gateway, router, engine and its replica arrive where Prometheus is sent to scrape."""
    jobs = {"gateway", "router", "engine_replica", "engine"}

    wait_until(
        lambda: {each.group.job for each in groups_of(deployed.pushed_to, "fastswitch")} == jobs,
        "all have pushed",
        within_s=PUSHED_WITHIN_S,
    )
