"""Starts that cannot succeed: one sentence, a status, and nothing is started."""

import os
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from app.demo_model import write_demo_model
from app.ports import free_port
from tests.cluster.program import FASTSWITCH, HOST

pytestmark = pytest.mark.cluster

WRONG_USAGE, CHECK_FAILED = 2, 1
APPLICATION = "applications:\n- name: fastswitch\n  import_path: app.build:build\n"


def start(arguments: Sequence[str]) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [FASTSWITCH, "serve", "--port", str(free_port(HOST)), *arguments],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
    )


def sentence(arguments: Sequence[str], *, status: int = CHECK_FAILED) -> str:
    """What the program says before it ends: exactly one line, which is its reason."""
    finished = start(arguments)
    assert finished.returncode == status, finished.stderr
    assert finished.stdout == ""
    [line] = finished.stderr.splitlines()
    assert line.startswith("fastswitch: ")
    return line


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    write_demo_model(folder, "tiny", seed=0)
    return str(folder)


def config(folder: Path, args: str, rest: str = "") -> list[str]:
    """Arguments that name a configuration file with these ``args``."""
    path = folder / "serve_config.yaml"
    path.write_text(f"{rest}{APPLICATION}  args: {args}\n")
    return ["--config", str(path)]


def test_a_port_in_use_names_its_holder(model: str) -> None:
    """Somebody else on the port: the sentence says who."""
    with socket.socket() as taken:
        taken.bind((HOST, 0))
        taken.listen()
        port = taken.getsockname()[1]

        said = sentence(["--model", model, "--port", str(port)])

    assert f"port {port}" in said
    assert f"process {os.getpid()}" in said
    assert "--port" in said


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ("{modle: demo}", ("args.modle", "no such setting", "model")),
        ("{replicas: many}", ("args.replicas", "integer", "many")),
        ("{replicas: 0}", ("args.replicas", "greater than or equal to 1")),
        ("{fairness: {policy: luck}}", ("args.fairness", "no policy 'luck'", "vtc")),
        ("{fairness: {kwantum: 1}}", ("args.fairness.kwantum", "quantum")),
        ("{tenants: {'a b': {}}}", ("args.tenants", "letters")),
        ("{host_kv_gib: -1}", ("args.host_kv_gib", "greater than or equal to 0")),
    ],
)
def test_a_wrong_setting_is_named(tmp_path: Path, args: str, says: Sequence[str]) -> None:
    """An unknown field or a wrong value in the file: which one, and what is allowed."""
    said = sentence(config(tmp_path, args))

    assert "serve_config.yaml" in said
    assert all(part in said for part in says), said


def test_a_wrong_section_is_named(tmp_path: Path) -> None:
    """A section of the file that is no section is named too."""
    said = sentence(config(tmp_path, "{}", rest="http_options: 8000\n"))

    assert "http_options" in said


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("applications: [", "YAML"),
        ("", "no fields"),
        ("applications: []", "import_path app.build:build"),
    ],
    ids=["not YAML", "empty", "no application"],
)
def test_a_file_that_is_no_configuration_is_refused(
    tmp_path: Path, content: str, says: str
) -> None:
    """A file without our application in it: what is needed."""
    path = tmp_path / "serve_config.yaml"
    path.write_text(content)

    assert says in sentence(["--config", str(path)])


def test_an_unreadable_configuration_is_named(tmp_path: Path) -> None:
    """A file that is not there, or is a folder, cannot be read."""
    missing = tmp_path / "missing.yaml"

    assert f"{missing}: cannot be read" in sentence(["--config", str(missing)])
    assert f"{tmp_path}: cannot be read" in sentence(["--config", str(tmp_path)])


def test_a_model_folder_without_a_config_is_named(tmp_path: Path) -> None:
    """A folder that holds no model, and a folder that does not exist."""
    assert "config.json" in sentence(["--model", str(tmp_path)])
    assert "no such folder" in sentence(["--model", str(tmp_path / "nowhere")])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("keys_required: perhaps", "keys_required"),
        ("tenants: {alice: {wait: 2}}", "wait"),
        ("tenants: [", "line"),
        ("", "empty"),
    ],
    ids=["wrong value", "unknown field", "not YAML", "empty"],
)
def test_a_broken_tenants_file_is_refused(
    tmp_path: Path, model: str, content: str, says: str
) -> None:
    """Without a tenants file that passes every check, nobody is let in and nothing starts."""
    path = tmp_path / "tenants.yaml"
    path.write_text(content)

    said = sentence(["--model", model, "--tenants-file", str(path)])

    assert f"tenants file {path}" in said
    assert says in said


def test_a_tenants_file_that_is_not_there_is_named(tmp_path: Path, model: str) -> None:
    """A missing tenants file: where it was looked for, and how to make one."""
    path = tmp_path / "tenants.yaml"

    said = sentence(["--model", model, "--tenants-file", str(path)])

    assert str(path) in said
    assert "fastswitch keys make" in said


def test_too_little_memory_is_said_before_anything_starts(model: str) -> None:
    """More host memory than the machine has: how much is wanted and free, and what to lower."""
    said = sentence(["--model", model, "--set", "host_kv_gib=10000"])

    assert "too little memory" in said
    assert "20000" in said or "20,000" in said or "2000" in said
    assert "host_kv_gib" in said


def test_an_engine_argument_that_vllm_does_not_know_is_named(model: str) -> None:
    """A misspelt argument for the engine is found before Ray starts."""
    finished = start(["--model", model, "--set", "engine_args={blok_size: 16}"])

    assert finished.returncode == CHECK_FAILED
    assert finished.stdout == ""
    *of_vllms_import, line = finished.stderr.splitlines()
    assert "args.engine_args: vLLM knows no blok_size" in line
    assert "starting Ray" not in "".join(of_vllms_import)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--set", "colour=red"], ("colour", "no such setting")),
        (["--set", "replicas=0"], ("replicas", "greater than or equal to 1")),
        (["--set", "replicas=[1"], ("replicas",)),
        (["--replicas", "0"], ("replicas", "greater than or equal to 1")),
        (["--replicas", "-2"], ("replicas", "greater than or equal to 1")),
    ],
)
def test_a_wrong_setting_on_the_command_line_is_named(
    model: str, arguments: Sequence[str], says: Sequence[str]
) -> None:
    """What ``--set`` and the options give is checked as the file is."""
    finished = start(["--model", model, *arguments])

    assert finished.returncode in (CHECK_FAILED, WRONG_USAGE)
    [line] = finished.stderr.splitlines()
    assert line.startswith("fastswitch: ")
    assert all(part in line for part in says), line


def test_set_wants_a_name_and_a_value(model: str) -> None:
    """``--set`` without ``=`` is wrong usage."""
    said = sentence(["--model", model, "--set", "replicas"], status=WRONG_USAGE)

    assert "NAME=VALUE" in said


def test_an_unknown_option_is_wrong_usage() -> None:
    """What the program does not know it does not start with."""
    finished = start(["--colour", "red"])

    assert finished.returncode == WRONG_USAGE
    assert "--colour" in finished.stderr
    assert "Traceback" not in finished.stderr
