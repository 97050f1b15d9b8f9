"""The Kubernetes manifest: what it says fits together, and fits what it deploys."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.schema import ServeDeploySchema

from app.config_file import IMPORT_PATH, parse_args
from app.errors import ConfigFileError
from app.settings import AppArgs
from app.versions import RAY_VERSION

MANIFESTS = Path(__file__).parents[3] / "ops" / "manifests"
GIB = {"Gi": 1.0, "Mi": 1 / 1024}
RAYS_SHM_GIB = 8.0  # its object store, and NCCL's queues
PROCESSES_GIB = 8.0  # of an engine, its replica and Ray's own on a worker, beside KV


@pytest.fixture(scope="module")
def manifest() -> Any:
    return yaml.safe_load((MANIFESTS / "rayservice.yaml").read_text())


@pytest.fixture(scope="module")
def serve_config(manifest: Any) -> Any:
    return yaml.safe_load(manifest["spec"]["serveConfigV2"])


@pytest.fixture(scope="module")
def args(serve_config: Any) -> AppArgs:
    [application] = serve_config["applications"]
    assert application["import_path"] == IMPORT_PATH
    return parse_args(MANIFESTS / "rayservice.yaml", application["args"])


def worker(manifest: Any) -> Any:
    [group] = manifest["spec"]["rayClusterConfig"]["workerGroupSpecs"]
    return group


def container(group: Any) -> Any:
    [only] = group["template"]["spec"]["containers"]
    return only


def gib(quantity: str) -> float:
    return float(quantity[:-2]) * GIB[quantity[-2:]]


def test_what_is_deployed_is_a_configuration_of_serve(serve_config: Any) -> None:
    """Ray's own model of ``serve deploy`` takes it."""
    ServeDeploySchema.model_validate(serve_config)


def test_settings_out_of_range_are_told(serve_config: Any) -> None:
    """A value that our settings do not allow is named with what is allowed."""
    [application] = serve_config["applications"]

    with pytest.raises(ConfigFileError, match="replicas"):
        parse_args(MANIFESTS / "rayservice.yaml", {**application["args"], "replicas": 0})


def test_the_cluster_runs_the_ray_that_is_installed(manifest: Any) -> None:
    """KubeRay, the image and our lock mean the same release."""
    assert manifest["spec"]["rayClusterConfig"]["rayVersion"] == RAY_VERSION == version("ray")


def test_the_workers_have_the_gpus_that_the_engines_want(manifest: Any, args: AppArgs) -> None:
    """All engines together, and each on one node."""
    group = worker(manifest)
    gpus = container(group)["resources"]["limits"]["nvidia.com/gpu"]

    assert group["replicas"] * gpus >= args.replicas * args.tensor_parallel_size
    assert gpus >= args.tensor_parallel_size


def test_a_worker_has_the_memory_that_an_engine_takes(manifest: Any, args: AppArgs) -> None:
    """The processes, and shared memory with the host copies, which counts as the pod's."""
    group = worker(manifest)
    resources = container(group)["resources"]
    engines = resources["limits"]["nvidia.com/gpu"] // args.tensor_parallel_size
    [shm] = [v for v in group["template"]["spec"]["volumes"] if v["name"] == "shm"]
    shm_gib = gib(shm["emptyDir"]["sizeLimit"])

    assert resources["requests"]["memory"] == resources["limits"]["memory"]
    assert shm_gib >= engines * args.host_kv_gib + RAYS_SHM_GIB
    assert gib(resources["limits"]["memory"]) >= engines * PROCESSES_GIB + shm_gib


def test_probes_scrapes_and_requests_go_to_serves_port(manifest: Any, serve_config: Any) -> None:
    """Readiness asks our health, Prometheus our metrics, both where Serve listens."""
    port = serve_config["http_options"]["port"]
    group = worker(manifest)
    probes = [container(group)[name]["httpGet"] for name in ("startupProbe", "readinessProbe")]
    annotations = group["template"]["metadata"]["annotations"]

    assert probes == [{"path": "/health", "port": port}] * 2
    assert annotations["prometheus.io/port"] == str(port)
    assert annotations["prometheus.io/path"] == "/metrics"
    assert port in [each["containerPort"] for each in container(group)["ports"]]


def test_tenants_are_read_from_the_mounted_secret(manifest: Any, args: AppArgs) -> None:
    """The file that the settings name is in the folder that the Secret is mounted to."""
    for group in (manifest["spec"]["rayClusterConfig"]["headGroupSpec"], worker(manifest)):
        [mount] = [m for m in container(group)["volumeMounts"] if m["name"] == "tenants"]
        assert args.tenants_file is not None
        assert args.tenants_file.parent == Path(mount["mountPath"])


def test_the_image_holds_every_package(manifest: Any) -> None:
    """Each of our source folders is copied, and the set-up is that of a GPU."""
    lines = (MANIFESTS / "Containerfile").read_text().splitlines()
    copied = {line.split()[1] for line in lines if line.startswith("COPY")}

    assert {"app", "deployments", "kv", "ops", "scheduler", "requirements"} <= copied
    assert any("DEVICE=cuda" in line and "scripts/setup.sh" in line for line in lines)
