"""Serve on this machine: starts Ray, the engines and the HTTP edge, and stops them with Ctrl-C.

On a cluster that already runs, use `serve deploy serve_config.yaml` instead.
"""

import signal
import sys
import time
from argparse import ArgumentParser, Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from app.config_file import ServeConfig, read_serve_config
from app.deploy_watch import DeployWatcher, tell, wait_until_served, watch_while_served
from app.devices import has_cuda
from app.errors import ConfigFileError, DeployFailedError, PortInUseError, UsageError
from app.local_cluster import HOST, local_cluster
from app.memory import check_memory
from app.models import model_name, resolve_model
from app.ports import holder_of_port, is_port_free
from app.settings import AppArgs
from app.tenants import open_directory
from app.versions import check_versions
from ops.metrics.stale_groups import remove_application

EXAMPLE = "fastswitch serve --model ./my-model --replicas 2 --port 8000"
APPLICATION = "fastswitch"
DEFAULT_CONFIG = Path(__file__).resolve().parents[2] / "serve_config.yaml"


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("--config", type=Path, default=DEFAULT_CONFIG, help="a serve_config.yaml")
    parser.add_argument("--model", help="a model folder or Hugging Face name (default: demo)")
    parser.add_argument("--replicas", type=int, help="engines")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), help="where engines compute")
    parser.add_argument("--host", help="address to listen on (default: 127.0.0.1, this machine)")
    parser.add_argument("--port", type=int, help="port to listen on (default: 8000)")
    parser.add_argument("--tenants-file", type=Path, help="tenants with API keys")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="any other setting of app/settings.py, its value as YAML; may be repeated",
    )


def run(options: Namespace) -> int:
    check_versions()
    config = read_serve_config(options.config, _overrides(options))
    host = options.host or config.host
    port = options.port or config.port
    if not is_port_free(host, port):
        raise PortInUseError(host, port, holder_of_port(port))
    on_cuda = config.args.device == "cuda" or (config.args.device == "auto" and has_cuda())
    resolve_model(config.args.model)
    open_directory(config.args.tenants_file, config.args.tenants)  # or say what is wrong with it
    _check_engine_args(options.config, config.args)
    check_memory(config.args, on_cuda=on_cuda)
    started_s = time.monotonic()
    tell("starting Ray", 0.0)
    with (
        _metrics_taken_back(config.args.metrics.push_url),
        local_cluster(num_gpus=None if on_cuda else 0) as dashboard_url,
    ):
        _stop_on_signals()
        _deploy(config.args, host, port, started_s)
        _say_ready(config, host, port, dashboard_url, time.monotonic() - started_s)
        watch_while_served(host, port, started_s)
    return 0


@contextmanager
def _metrics_taken_back(push_url: str | None) -> Iterator[None]:
    """In the end nothing of ours is left at the Pushgateway: Ray's processes say no goodbye."""
    try:
        yield
    finally:
        if push_url is not None:
            try:
                remove_application(push_url, APPLICATION)
            except OSError as error:
                print(f"metrics were left at {push_url}: {error}", file=sys.stderr)


def _overrides(options: Namespace) -> dict[str, Any]:
    """Settings given on the command line, by their names in ``args``."""
    named = {
        "model": options.model,
        "replicas": options.replicas,
        "device": options.device,
        "tenants_file": options.tenants_file,
    }
    given = {name: value for name, value in named.items() if value is not None}
    given["peer_host"] = HOST  # nobody else's machine has a part in this
    if options.tenants_file is not None:
        given["tenants_file"], given["tenants"] = options.tenants_file.resolve(), {}
    for setting in options.set:
        name, equals, value = setting.partition("=")
        if not equals:
            raise UsageError(f"--set {setting}: NAME=VALUE is wanted")
        try:
            given[name] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise UsageError(f"--set {name}: {value!r} is not YAML") from None
    return given


def _check_engine_args(path: Path, args: AppArgs) -> None:
    """Find a misspelt one here: an engine finds it after half a minute, and Serve tries thrice.

    Raises:
        ConfigFileError: vLLM has no engine argument of that name.
    """
    if not args.engine_args:
        return  # vLLM takes seconds to import
    from deployments.vllm_engine import unknown_engine_args

    unknown = unknown_engine_args(args.engine_args)
    if unknown:
        raise ConfigFileError(path, f"args.engine_args: vLLM knows no {', '.join(unknown)}")


def _deploy(args: AppArgs, host: str, port: int, started_s: float) -> None:
    """Deploy the application and wait for it, telling what it waits for.

    Raises:
        DeployFailedError: Serve gave up; the reason is the failed part's own.
    """
    from ray import serve
    from ray.serve.config import HTTPOptions, ProxyLocation

    from app.build import QUIET, build

    watcher = DeployWatcher(started_s)
    with watcher:
        serve.start(
            proxy_location=ProxyLocation.HeadOnly,
            http_options=HTTPOptions(host=host, port=port),
            logging_config=QUIET,
        )
        try:
            serve.run(build(args), name=APPLICATION, route_prefix="/", logging_config=QUIET)
        except RuntimeError:
            raise DeployFailedError(watcher.failure()) from None
        wait_until_served(host, port)


def _say_ready(
    config: ServeConfig, host: str, port: int, dashboard_url: str, took_s: float
) -> None:
    shown = "127.0.0.1" if host in ("0.0.0.0", "::") else host  # noqa: S104  (compared, not bound)
    url = f"http://{shown}:{port}"
    model = config.args.served_model_name or model_name(config.args.model)
    needs_key = open_directory(config.args.tenants_file, config.args.tenants).keys_required
    key = " -H 'Authorization: Bearer YOUR_KEY'" if needs_key else ""
    print(f"ready  {url}  ({config.args.replicas} engines, {took_s:.0f} s)", flush=True)
    print(
        f"""
  curl -N {url}/v1/chat/completions{key} -H 'Content-Type: application/json' \\
    -d '{{"model": "{model}", "stream": true, "max_tokens": 32,
         "messages": [{{"role": "user", "content": "Hello"}}]}}'

  fairness   {url}/v1/fairness
  metrics    {url}/metrics
  dashboard  {dashboard_url}
  stop       Ctrl-C
""",
        flush=True,
    )


def _stop_on_signals() -> None:
    def stop(_signal: int, _frame: Any) -> None:
        raise KeyboardInterrupt

    # SIGINT too: a shell starts background jobs with it ignored. After Ray's start, which
    # installs a handler that ends the process before anything is cleaned up.
    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
