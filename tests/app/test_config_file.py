"""serve_config.yaml: what is taken from it, and what is said of one that cannot be used."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from app.config_file import IMPORT_PATH, ServeConfig, read_serve_config
from app.errors import ConfigFileError
from app.settings import AppArgs, FairnessSettings, TenantSettings

CHECKOUT = Path(__file__).parents[2]


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def with_args(path: Path, args: object, **others: object) -> Path:
    """A configuration whose one application is ours, with these ``args``."""
    application = {"name": "fastswitch", "import_path": IMPORT_PATH, "args": args}
    return write(path, yaml.safe_dump({"applications": [application], **others}))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "serve_config.yaml"


def test_the_file_that_comes_with_the_project_is_valid() -> None:
    """It serves the demo model, to this machine only."""
    config = read_serve_config(CHECKOUT / "serve_config.yaml", {})

    assert (config.host, config.port, config.args.model) == ("127.0.0.1", 8000, "demo")
    assert config.args.tenants["interactive"] == TenantSettings(weight=2.0)


def test_our_application_is_found_among_others(path: Path) -> None:
    """Its settings and the address are taken; the rest of the file is Serve's."""
    ours = {"name": "mine", "import_path": IMPORT_PATH, "args": {"replicas": 3}}
    other = {"name": "other", "import_path": "somebody.elses:app", "args": {"replicas": 9}}
    document = {
        "http_options": {"host": "0.0.0.0", "port": 9000},  # noqa: S104 - read, not bound
        "applications": [other, ours],
    }
    config = read_serve_config(write(path, yaml.safe_dump(document)), {})

    assert config == ServeConfig("0.0.0.0", 9000, AppArgs(replicas=3))  # noqa: S104


def with_live(path: Path, args: object, user_config: object) -> Path:
    """A configuration that gives the router something to change while it runs."""
    application = {
        "import_path": IMPORT_PATH,
        "args": args,
        "deployments": [{"name": "Engine"}, {"name": "Router", "user_config": user_config}],
    }
    return write(path, yaml.safe_dump({"applications": [application]}))


def test_what_the_router_may_change_while_it_runs_goes_over_the_rest(path: Path) -> None:
    """As it will once Serve has started it."""
    args = {"fairness": {"policy": "fcfs", "quantum": 64}}
    config = read_serve_config(with_live(path, args, {"fairness": {"quantum": 32}}), {})

    assert config.args == AppArgs(fairness=FairnessSettings(policy="fcfs", quantum=32))


def test_what_the_router_cannot_go_by_is_named(path: Path) -> None:
    """Before anything starts: Serve itself checks none of it."""
    with pytest.raises(ConfigFileError, match=r"user_config\.fairness\.quantum: .*greater than 0"):
        read_serve_config(with_live(path, {}, {"fairness": {"quantum": -1}}), {})


def test_what_is_left_out_has_a_default(path: Path) -> None:
    """No address means this machine alone."""
    default = ServeConfig("127.0.0.1", 8000, AppArgs())

    assert read_serve_config(with_args(path, {}), {}) == default
    assert read_serve_config(with_args(path, None), {}) == default


def test_the_command_line_overrules_the_file(path: Path) -> None:
    """Setting by setting; what it does not name stays."""
    with_args(path, {"replicas": 3, "model": "from-file"})
    config = read_serve_config(path, {"model": "from-command-line"})

    assert (config.args.replicas, config.args.model) == (3, "from-command-line")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is not a Serve configuration: it has no fields"),
        ("just a text", "is not a Serve configuration: it has no fields"),
        ("a: [1", "is not YAML"),
        ("a: b: c", "is not YAML"),
        ("name: x", "applications: a list is needed"),
        ("applications: 5", "applications: a list is needed"),
        ("applications: {import_path: a}", "applications: a list is needed"),
        ("applications: []", f"one with import_path {IMPORT_PATH} is needed, found 0"),
        ("applications: [5, null, text]", "found 0"),
        (
            f"applications: [{{import_path: '{IMPORT_PATH}'}}, {{import_path: '{IMPORT_PATH}'}}]",
            "2",
        ),
        (f"applications: [{{import_path: '{IMPORT_PATH}', args: [1]}}]", "args has no fields"),
        (f"applications: [{{import_path: '{IMPORT_PATH}', args: text}}]", "args has no fields"),
        ("http_options: 5", "http_options has no fields"),
        ("http_options: {port: eighty}", "port a whole number"),
        ("http_options: {port: 80.5}", "port a whole number"),
        ("http_options: {host: 5}", "host is a name or address"),
    ],
)
def test_a_file_that_cannot_be_used_is_explained(path: Path, text: str, problem: str) -> None:
    """In one sentence, with the file's name."""
    with pytest.raises(ConfigFileError) as caught:
        read_serve_config(write(path, text), {})

    assert str(caught.value).startswith(f"{path}: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_explained(path: Path, tmp_path: Path) -> None:
    """One that is not there, a folder, and one that is no text."""
    for unreadable, problem in ((path, "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigFileError, match=f"cannot be read: {problem}"):
            read_serve_config(unreadable, {})
    path.write_bytes(b"\xff\xfe\x00binary")
    with pytest.raises(ConfigFileError, match="is not UTF-8 text"):
        read_serve_config(path, {})


@pytest.mark.parametrize(
    ("args", "sentence"),
    [
        ({"replica": 2}, "args.replica: there is no such setting; allowed are admit_timeout_s, "),
        (
            {"fairness": {"polcy": "vtc"}},
            (
                "args.fairness.polcy: there is no such setting; allowed are batch_lag, classes, "
                "head_start, input_weight, max_switches_per_s, max_tool_ttl_s, max_wait_s, "
            ),
        ),
        (
            {"tenants": {"acme": {"wieght": 2}}},
            "args.tenants.acme.wieght: there is no such setting; allowed are class, max_concurrent",
        ),
        (
            {"fairness": {"policy": "lottery"}},
            "args.fairness: there is no policy 'lottery'; there are vtc, ",
        ),
        (
            {"fairness": {"classes": {"urgent": {"ttft_s": 0.1}}}},
            (
                "args.fairness.classes.urgent: there is no such setting; allowed are batch, "
                "interactive"
            ),
        ),
        ({"replicas": 0}, "args.replicas: input should be greater than or equal to 1 (given: 0)"),
        ({"device": "gpu"}, "args.device: input should be 'auto', 'cpu' or 'cuda' (given: 'gpu')"),
        (
            {"engine_args": {"model": "x"}},
            "args.engine_args: model: set by the application, not in engine_args",
        ),
        (
            {"tenants": {"acme": {}}, "tenants_file": "tenants.yaml"},
            "args: tenants and tenants_file are both given; use one of them",
        ),
    ],
)
def test_a_setting_that_is_not_allowed_is_explained(
    path: Path, args: dict[str, Any], sentence: str
) -> None:
    """Where it stands, what was given and what is allowed."""
    with pytest.raises(ConfigFileError) as caught:
        read_serve_config(with_args(path, args), {})

    assert str(caught.value).startswith(f"{path}: {sentence}")


NAMES = ("applications", "import_path", IMPORT_PATH, "args", "http_options", "host", "port")
WORDS = st.sampled_from((*NAMES, *AppArgs.model_fields, "weight", "policy", "vtc"))
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | WORDS
DOCUMENTS = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | SCALARS, inner, max_size=6),
    max_leaves=20,
)


@given(document=DOCUMENTS, args=DOCUMENTS)
def test_any_file_is_taken_or_explained(
    document: object, args: object, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Whatever stands in it, reading ends with settings or with one sentence."""
    path = tmp_path_factory.getbasetemp() / "any.yaml"
    ours = {"applications": [{"import_path": IMPORT_PATH, "args": args}]}
    for content in (document, ours, {"http_options": document, **ours}):
        write(path, yaml.safe_dump(content, allow_unicode=True))
        try:
            assert isinstance(read_serve_config(path, {}), ServeConfig)
        except ConfigFileError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017 - either outcome is right
