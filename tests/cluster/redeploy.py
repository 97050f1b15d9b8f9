"""``serve deploy`` on the program under test: the configuration that it runs, with changes.

Owns the file and Serve's commands, as an operator uses them. What has to follow is the tests' to
see.
"""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.cluster.program import HOST, Program, wait_until

SERVE = Path(sys.executable).with_name("serve")
APPLICATION = "fastswitch"
COMMAND_WITHIN_S = 120.0


class Deployer:
    """Deploys an application of these ``args`` in the place of the program's own."""

    def __init__(self, program: Program, args: Mapping[str, Any], folder: Path) -> None:
        found = re.search(r"dashboard  (http://\S+)", program.said)
        assert found is not None
        self._dashboard, self._port = found[1], program.port
        self._args = args
        self._path = folder / "serve_config.yaml"

    def deploy(self, user_config: Mapping[str, Any] | None = None) -> None:
        """Returns when Serve has taken the configuration; what that changes comes after.

        ``user_config`` is what the router is to change while it runs.
        """
        application: dict[str, Any] = {
            "name": APPLICATION,
            "route_prefix": "/",
            "import_path": "app.build:build",
            "args": dict(self._args),
        }
        if user_config is not None:
            application["deployments"] = [{"name": "Router", "user_config": user_config}]
        config = {
            "proxy_location": "HeadOnly",
            "http_options": {"host": HOST, "port": self._port},
            "applications": [application],
        }
        self._path.write_text(yaml.safe_dump(config))
        self._serve("deploy", str(self._path))

    def wait_until_deployed(self, *, within_s: float) -> None:
        """Return when Serve says that all runs as it was told to."""
        wait_until(self._is_deployed, "the application is deployed", within_s=within_s)

    def _is_deployed(self) -> bool:
        application = yaml.safe_load(self._serve("status"))["applications"][APPLICATION]
        states = {each["status"] for each in application["deployments"].values()}
        return application["status"] == "RUNNING" and states == {"HEALTHY"}

    def _serve(self, command: str, *arguments: str) -> str:
        done = subprocess.run(
            [SERVE, command, "--address", self._dashboard, *arguments],
            check=False,
            capture_output=True,
            text=True,
            timeout=COMMAND_WITHIN_S,
            # The program's Ray asks for the token that it has left in the home folder.
            env={**os.environ, "RAY_AUTH_MODE": "token"},
        )
        assert done.returncode == 0, done.stderr
        return done.stdout
