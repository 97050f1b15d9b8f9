"""The Kubernetes manifest: what it says fits together, and fits what it deploys."""

import tomllib
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

ROOT = Path(__file__).parents[3]
MANIFESTS = ROOT / "ops" / "manifests"
GIB = {"Gi": 1.0, "Mi": 1 / 1024}
RAYS_SHM_GIB = 8.0  # its object store, and NCCL's queues
PROCESSES_GIB = 8.0  # of an engine, its replica and Ray's own on a worker, beside KV


@pytest.fixture(scope="module")
def documents() -> dict[str, Any]:
    """What is applied, by its kind."""
    applied = yaml.safe_load_all((MANIFESTS / "rayservice.yaml").read_text())
    return {each["kind"]: each for each in applied}


@pytest.fixture(scope="module")
def manifest(documents: dict[str, Any]) -> Any:
    return documents["RayService"]


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
    """At the start and with as many engines and nodes as there may be; each engine on one node."""
    group = worker(manifest)
    gpus = container(group)["resources"]["limits"]["nvidia.com/gpu"]

    assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    assert group["replicas"] * gpus >= args.replicas * args.tensor_parallel_size
    assert group["maxReplicas"] * gpus >= args.max_replicas * args.tensor_parallel_size
    assert gpus >= args.tensor_parallel_size


def test_pods_come_and_go_with_engines(manifest: Any, args: AppArgs) -> None:
    """Where the engines' number may change, Ray may have more nodes, and fewer."""
    cluster = manifest["spec"]["rayClusterConfig"]

    assert args.autoscaling is not None
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["autoscalerOptions"]["idleTimeoutSeconds"] > 0
    assert args.max_replicas > args.replicas


def test_an_upgrade_leaves_streams_the_time_that_a_redeploy_does(
    manifest: Any, args: AppArgs
) -> None:
    """KubeRay deletes the old cluster, gateways and all, without a word to them."""
    assert manifest["spec"]["rayClusterDeletionDelaySeconds"] >= args.gateway_drain_s


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


def test_probes_and_requests_go_to_serves_port(manifest: Any, serve_config: Any) -> None:
    """Readiness asks our health where Serve listens."""
    port = serve_config["http_options"]["port"]
    only = container(worker(manifest))

    assert only["readinessProbe"]["httpGet"] == {"path": "/health", "port": port}
    assert port in [each["containerPort"] for each in only["ports"]]


def test_metrics_are_pushed_to_the_one_place_that_is_scraped(
    documents: dict[str, Any], args: AppArgs
) -> None:
    """The address is the Service's, which leads to the Pushgateway, whose pod says where."""
    service, pushgateway = documents["Service"], documents["Deployment"]
    [service_port] = service["spec"]["ports"]
    pod = pushgateway["spec"]["template"]
    [only] = pod["spec"]["containers"]
    [container_port] = only["ports"]

    name, port = service["metadata"]["name"], service_port["port"]
    assert args.metrics.push_url == f"http://{name}:{port}"
    assert service["spec"]["selector"] == pod["metadata"]["labels"]
    assert pushgateway["spec"]["selector"]["matchLabels"] == pod["metadata"]["labels"]
    assert container_port["containerPort"] == port
    assert pod["metadata"]["annotations"] == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(port),
        "prometheus.io/path": "/metrics",
    }


def test_no_gateway_is_scraped_through_another(manifest: Any) -> None:
    """What answers on Serve's port is now this gateway, now that one: nobody is sent there."""
    cluster = manifest["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], worker(manifest)):
        assert "annotations" not in group["template"].get("metadata", {})


def test_tenants_are_read_from_the_mounted_secret(manifest: Any, args: AppArgs) -> None:
    """The file that the settings name is in the folder that the Secret is mounted to."""
    for group in (manifest["spec"]["rayClusterConfig"]["headGroupSpec"], worker(manifest)):
        [mount] = [m for m in container(group)["volumeMounts"] if m["name"] == "tenants"]
        assert args.tenants_file is not None
        assert args.tenants_file.parent == Path(mount["mountPath"])


def test_the_image_holds_every_package_and_what_they_are_built_from() -> None:
    """Each source folder that is packaged, the files that name them, the set-up of a GPU."""
    lines = (MANIFESTS / "Containerfile").read_text().splitlines()
    copied = {part for line in lines if line.startswith("COPY") for part in line.split()[1:-1]}
    told = tomllib.loads((ROOT / "pyproject.toml").read_text())
    project, packages = told["project"], told["tool"]["setuptools"]["packages"]["find"]["include"]

    assert {name.rstrip("*") for name in packages} | {"requirements", "scripts"} <= copied
    assert {"pyproject.toml", project["readme"], *project["license-files"]} <= copied
    assert any("DEVICE=cuda" in line and "scripts/setup.sh" in line for line in lines)
