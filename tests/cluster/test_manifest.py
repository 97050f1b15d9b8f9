"""What the Kubernetes manifest deploys, deployed on a Ray cluster of this machine."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import psutil
import pytest
import yaml

from app.ports import free_port
from app.tenants_file import TenantRecord, TenantsFile, edit_tenants_file

HOST = "127.0.0.1"
MANIFEST = Path(__file__).parents[2] / "ops" / "manifests" / "rayservice.yaml"
BIN = Path(sys.executable).parent
DEPLOYED_WITHIN_S = 180.0
SERVED_WITHIN_S = 240.0
END_WITHIN_S = 20.0

pytestmark = pytest.mark.cluster


@contextmanager
def ray_cluster(log: Path) -> Iterator[str]:
    """A Ray cluster of its own beside any other; yields its dashboard's address."""
    port, dashboard_port = free_port(HOST), free_port(HOST)
    command = [
        *(str(BIN / "ray"), "start", "--head", "--block"),
        *("--node-ip-address", HOST, "--port", str(port)),
        *("--dashboard-host", HOST, "--dashboard-port", str(dashboard_port)),
        *("--dashboard-agent-listen-port", str(free_port(HOST))),
        *("--num-gpus", "0", "--object-store-memory", str(128 * 2**20)),
    ]
    environment = {**os.environ, "RAY_USAGE_STATS_ENABLED": "0"}
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    started = psutil.Process(process.pid)
    try:
        yield f"http://{HOST}:{dashboard_port}"
    finally:
        everything = [*started.children(recursive=True), started]
        started.terminate()
        _, alive = psutil.wait_procs(everything, timeout=END_WITHIN_S)
        for each in alive:
            each.kill()


def answer_of(url: str, log: Path, **request: Any) -> httpx.Response:
    """The first answer of 200 to a request that is made until there is one."""
    deadline_s = monotonic() + SERVED_WITHIN_S
    answer: httpx.Response | httpx.HTTPError | None = None
    while monotonic() < deadline_s:
        try:
            answer = httpx.request(url=url, timeout=30.0, **request)
        except httpx.HTTPError as error:
            answer = error
        if isinstance(answer, httpx.Response) and answer.is_success:
            return answer
        sleep(0.5)
    pytest.fail(f"{url} was not served; last: {answer}; log: {log.read_text()[-2000:]}")


def deploy(config: Path, dashboard: str, log: Path) -> None:
    """``serve deploy``, again until the cluster takes it: it has only begun to start."""
    command = [f"{BIN}/serve", "deploy", "--address", dashboard, str(config)]
    deadline_s = monotonic() + DEPLOYED_WITHIN_S
    while True:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
        if done.returncode == 0:
            return
        assert monotonic() < deadline_s, f"{done.stderr[-2000:]}; log: {log.read_text()[-2000:]}"


@pytest.mark.timeout(400)
def test_what_the_manifest_deploys_is_served(tiny_model: Path, tmp_path: Path) -> None:
    """Its serveConfigV2, with this machine's model, device and sizes, answers a completion."""
    config = yaml.safe_load(yaml.safe_load(MANIFEST.read_text())["spec"]["serveConfigV2"])
    tenants, port = tmp_path / "tenants.yaml", free_port(HOST)
    settings = TenantsFile(keys_required=False, tenants={"alice": TenantRecord(weight=2.0)})
    edit_tenants_file(tenants, lambda _: settings)
    config["http_options"] |= {"host": HOST, "port": port}
    [application] = config["applications"]
    application["args"] |= {
        "model": str(tiny_model),
        "device": "cpu",
        "replicas": 1,
        "gateways": 1,
        "host_kv_gib": 0.125,
        "kv_cache_gib": 0.125,
        "max_num_seqs": 8,
        "tenants_file": str(tenants),
        "peer_host": HOST,
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config))
    log = tmp_path / "ray.log"

    with ray_cluster(log) as dashboard:
        deploy(tmp_path / "config.yaml", dashboard, log)
        answer_of(f"http://{HOST}:{port}/health", log, method="GET")
        answer = answer_of(
            f"http://{HOST}:{port}/v1/completions",
            log,
            method="POST",
            headers={"X-Tenant": "alice"},
            json={"model": str(tiny_model), "prompt": "Hello", "max_tokens": 5},
        )

    assert answer.json()["usage"]["completion_tokens"] == 5
