"""The servers under test: ours, and for ``bench serve`` the plain vLLM server beside it.

Owns what "the same" means. Both get the arguments that our settings stand for, by the same
translation, and the same environment. The baseline goes without our scheduler, our connector and
the priority policy, and keeps vLLM's own default of running the model in a worker process.
"""

import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from app.devices import has_cuda
from app.engine_settings import engine_args, engine_environment
from app.models import resolve_model
from app.settings import AppArgs
from ops.bench.server import HOST, PORT, ServerCommand

# What `vllm serve` runs; the command itself does not start with the CPU package.
BASELINE_MODULE = "vllm.entrypoints.launchers.api_server.entry"
_OUR_ARGS = frozenset(
    {"scheduler_cls", "kv_transfer_config", "scheduling_policy", "additional_config"}
)
_OUR_ENVIRONMENT = frozenset({"VLLM_ENABLE_V1_MULTIPROCESSING"})


def fastswitch_command(args: AppArgs, *names: str) -> ServerCommand:
    """Our server, by the command users type; beside the model, the settings of these names."""
    program = str(Path(sys.executable).with_name("fastswitch"))
    argv = [program, "serve", "--host", HOST, "--port", PORT]
    argv += ["--model", resolve_model(args.model), "--replicas", str(args.replicas)]
    values = args.model_dump(mode="json", include=set(names))
    for name in names:
        argv += ["--set", f"{name}={json.dumps(values[name])}"]
    return ServerCommand("fastswitch", tuple(argv), environment={})


def baseline_command(args: AppArgs) -> ServerCommand:
    """The plain vLLM server: one engine, whatever the number of our replicas."""
    on_cuda = args.device == "cuda" or (args.device == "auto" and has_cuda())
    arguments = engine_args(args, resolve_model(args.model), on_cuda=on_cuda)
    environment = engine_environment(args, on_cuda=on_cuda, num_cores=os.cpu_count() or 1)
    argv = [sys.executable, "-m", BASELINE_MODULE, "--host", HOST, "--port", PORT]
    return ServerCommand(
        "baseline",
        (*argv, *_flags(_without(arguments, _OUR_ARGS))),
        _without(environment, _OUR_ENVIRONMENT),
    )


def note(command: ServerCommand) -> str:
    """What a server ran with, as one would type it; the home folder is left to the reader."""
    environment = [f"{name}={value}" for name, value in command.environment.items()]
    return " ".join([*environment, "python", *command.argv[1:]]).replace(str(Path.home()), "~")


def _without(values: Mapping[str, Any], ours: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in ours}


def _flags(arguments: Mapping[str, Any]) -> list[str]:
    """Command line of arguments by their names; what is ``None`` is left for vLLM to choose."""
    flags = []
    for name, value in arguments.items():
        option = name.replace("_", "-")
        if value is None:
            continue
        if isinstance(value, bool):
            flags.append(f"--{option}" if value else f"--no-{option}")
        elif isinstance(value, dict):
            flags += [f"--{option}", json.dumps(value)]
        else:
            flags += [f"--{option}", *map(str, value if isinstance(value, list) else [value])]
    return flags
