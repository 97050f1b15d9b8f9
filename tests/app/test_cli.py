"""The program: what it lists, how it ends, and that asking for help costs nothing."""

import json
import os
import subprocess
import sys
from argparse import ArgumentParser, Namespace
from pathlib import Path
from types import SimpleNamespace

import pytest

from app.cli.main import COMMANDS, Command, main
from app.doctor import Verdict, check_model
from app.errors import AppError, UsageError
from app.model_folder import read_model_folder
from app.tenants_file import read_tenants_file

CHECKOUT = Path(__file__).parents[2]
HEAVY_PACKAGES = ("vllm", "ray", "torch", "transformers")


def command_that(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> list[Command]:
    """A list with one command, `act`, that raises ``error``."""

    def run(_options: Namespace) -> int:
        raise error

    def add_arguments(_parser: ArgumentParser) -> None:
        return

    module = SimpleNamespace(EXAMPLE="fastswitch act", add_arguments=add_arguments, run=run)
    monkeypatch.setitem(sys.modules, "acting_command", module)
    return [Command("act", "acting_command", "raise")]


def in_another_process(code: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


def test_help_lists_every_command_and_no_other(capsys: pytest.CaptureFixture[str]) -> None:
    """What `fastswitch --help` lists is what there is."""
    with pytest.raises(SystemExit) as ended:
        main(["--help"])

    listed = capsys.readouterr().out.partition("commands:\n")[2].partition("\n\n")[0]
    assert ended.value.code == 0
    assert [line.split()[0] for line in listed.splitlines()] == [each.name for each in COMMANDS]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_has_help_with_an_example(
    command: Command, capsys: pytest.CaptureFixture[str]
) -> None:
    """`fastswitch COMMAND --help` ends with a line to paste."""
    with pytest.raises(SystemExit) as ended:
        main([command.name, "--help"])

    assert ended.value.code == 0
    example = capsys.readouterr().out.rstrip().splitlines()[-1]
    assert example.strip().startswith(f"fastswitch {command.name}")


@pytest.mark.parametrize(
    "arguments", [[], ["dance"], ["--dance"], ["keys"], ["keys", "make"], ["doctor", "--port", "0"]]
)
def test_wrong_usage_ends_with_two(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A command or argument that does not exist is status 2 and a sentence on stderr."""
    with pytest.raises(SystemExit) as ended:
        main(arguments)

    assert ended.value.code == 2
    assert "error: " in capsys.readouterr().err


@pytest.mark.parametrize(("error", "status"), [(AppError("broken"), 1), (UsageError("odd"), 2)])
def test_our_errors_are_one_sentence_and_a_status(
    error: AppError,
    status: int,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """An error that a person can act on is told without a traceback."""
    assert main(["act"], command_that(monkeypatch, error)) == status
    assert capsys.readouterr().err == f"fastswitch: {error}\n"


def test_an_interrupt_ends_quietly(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C is status 130 and says nothing."""
    assert main(["act"], command_that(monkeypatch, KeyboardInterrupt())) == 130
    assert capsys.readouterr() == ("", "")


def test_a_mistake_of_ours_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    """What no caller can put right is not dressed up as a sentence."""
    with pytest.raises(ZeroDivisionError):
        main(["act"], command_that(monkeypatch, ZeroDivisionError()))


def test_the_version_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """`fastswitch --version` names the program."""
    with pytest.raises(SystemExit) as ended:
        main(["--version"])

    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith("fastswitch ")


@pytest.mark.parametrize("arguments", [["--help"], ["keys", "--help"], ["doctor", "--help"]])
def test_help_imports_no_engine(arguments: list[str], tmp_path: Path) -> None:
    """Help, keys and doctor do not wait for the seconds that vLLM, Ray and torch take to import."""
    code = f"""
import sys
from app.cli.main import main
try:
    main({arguments})
except SystemExit:
    print("imported:", [name for name in {HEAVY_PACKAGES} if name in sys.modules])
"""
    assert in_another_process(code, tmp_path).endswith("imported: []\n")


def test_a_made_key_goes_alone_to_stdout(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`KEY=$(fastswitch keys make alice)` holds the key; its secret is nowhere else."""
    file = tmp_path / "tenants.yaml"

    assert main(["keys", "make", "alice", "--weight", "2", "--file", str(file)]) == 0

    told = capsys.readouterr()
    secret = told.out.strip().rpartition("-")[2]
    assert told.out.startswith("fs-")
    assert told.out.count("\n") == 1
    assert secret not in told.err
    assert secret not in file.read_text(encoding="utf-8")
    assert read_tenants_file(file).tenants["alice"].weight == 2


def test_making_a_key_says_when_keys_are_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A key that nobody will ask for is worth a word."""
    file = tmp_path / "tenants.yaml"
    file.write_text("keys_required: false\n", encoding="utf-8")

    main(["keys", "make", "alice", "--file", str(file)])

    assert "keys are off" in capsys.readouterr().err


def test_keys_are_listed_with_their_state_and_no_secret(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The list shows whose key is which and whether it works, for people and for programs."""
    file = str(tmp_path / "tenants.yaml")
    main(["keys", "make", "alice", "--file", file])
    key_id = capsys.readouterr().out.split("-")[1]
    main(["keys", "make", "bob", "--file", file])
    main(["keys", "revoke", key_id, "--file", file])
    capsys.readouterr()

    assert main(["keys", "list", "--json", "--file", file]) == 0
    alice, bob = json.loads(capsys.readouterr().out)["keys"]
    assert (alice["id"], alice["tenant"], alice["state"][:7]) == (key_id, "alice", "revoked")
    assert (bob["tenant"], bob["state"]) == ("bob", "active")
    assert set(bob) == {"id", "tenant", "created", "state"}

    assert main(["keys", "list", "--file", file]) == 0
    table = capsys.readouterr().out
    assert key_id in table
    assert "sha256" not in table


@pytest.mark.parametrize(
    ("arguments", "status", "sentence"),
    [
        (["make", "not a name"], 2, "tenant name 'not a name' is not allowed: 1 to 64 letters"),
        (["make", "alice", "--weight", "-1"], 2, "weight -1 is not allowed: from 0.001 to 1000"),
        (["make", "alice", "--weight", "nan"], 2, "weight nan is not allowed"),
        (["revoke", "3f2a90c4d1e8"], 2, "no key has the id '3f2a90c4d1e8'"),
        (["list"], 1, "no such file; `fastswitch keys make TENANT --file "),
    ],
)
def test_keys_that_cannot_be_are_one_sentence(
    arguments: list[str],
    status: int,
    sentence: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A name, weight, id or file that cannot be used is said so, and no file appears."""
    file = tmp_path / "tenants.yaml"

    assert main(["keys", *arguments, "--file", str(file)]) == status

    assert sentence in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_the_doctor_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    """On this machine the doctor comes to a result, the same in its status and in its JSON."""
    status = main(["doctor", "--json"])

    report = json.loads(capsys.readouterr().out)
    failed = [each["check"] for each in report["findings"] if each["verdict"] == "FAIL"]
    assert report["is_fit"] == (not failed) == (status == 0)


def test_the_doctor_fails_a_folder_that_holds_no_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder without a config is status 1, and the table says what to do."""
    assert main(["doctor", "--model", str(tmp_path)]) == 1

    table = capsys.readouterr().out
    assert "FAIL" in table
    assert "config.json" in table


def test_the_demo_model_is_written_where_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command writes a folder that the doctor finds complete, and prints where it is."""
    folder = tmp_path / "demo"

    assert main(["demo-model", str(folder), "--size", "tiny", "--seed", "3"]) == 0

    assert capsys.readouterr().out == f"{folder}\n"
    assert check_model(read_model_folder(folder)).verdict is Verdict.OK


@pytest.mark.parametrize(
    ("folder", "seed", "status"), [("/proc/demo", "0", 1), ("taken", "0", 1), ("demo", "-1", 2)]
)
def test_a_demo_model_that_cannot_be_written_is_one_sentence(
    folder: str, seed: str, status: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A place that cannot hold the model, or a seed that is none, is said so."""
    (tmp_path / "taken").touch()

    assert main(["demo-model", str(tmp_path / folder), "--seed", seed]) == status

    told = capsys.readouterr().err
    assert told.startswith("fastswitch: ")
    assert told.count("\n") == 1


def test_dashboards_are_written_where_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Dashboards, alert rules and a sample for Prometheus, over those of an earlier version."""
    folder = tmp_path / "monitoring"
    folder.mkdir()
    (folder / "prometheus.yml").write_text("old")

    assert main(["dashboards", str(folder)]) == 0

    listed = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(listed) == sorted(folder.iterdir())
    assert {path.suffix for path in listed} == {".json", ".yml"}
    assert all(path.read_text() not in ("", "old") for path in listed)


@pytest.mark.parametrize("folder", ["/proc/dashboards", "taken", "taken/below"])
def test_dashboards_that_cannot_be_written_are_one_sentence(
    folder: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A place that takes no files is said by name."""
    (tmp_path / "taken").touch()

    assert main(["dashboards", str(tmp_path / folder)]) == 1

    told = capsys.readouterr().err
    assert told.startswith(f"fastswitch: dashboards cannot be written to {tmp_path / folder}: ")
    assert told.count("\n") == 1
