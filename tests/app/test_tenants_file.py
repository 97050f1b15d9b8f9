"""The tenants file: what may stand in it, what is said of what may not, and how it is changed."""

import os
import pickle
import stat
import subprocess
import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest
import yaml

from app.errors import TenantNameError, TenantsFileError, UnknownKeyIdError, WeightError
from app.keys import hash_secret, new_key
from app.tenants_file import (
    KeyRecord,
    TenantsFile,
    add_key,
    edit_tenants_file,
    parse_tenants,
    read_tenants_file,
    revoke_key,
)

NOW = datetime(2026, 5, 1, tzinfo=UTC)
LATER = datetime(2026, 6, 1, tzinfo=UTC)
CHECKOUT = Path(__file__).parents[2]
KEY = f"{{id: 3f2a90c4d1e8, hash: 'sha256:{'0' * 32}:{'0' * 64}', created: 2026-05-01T00:00:00Z}}"


def record() -> KeyRecord:
    key = new_key()
    return KeyRecord(id=key.key_id, hash=hash_secret(key.secret), created=NOW)


def test_what_is_written_reads_back(tmp_path: Path) -> None:
    """A file that the program wrote says exactly what was put in."""
    path, key = tmp_path / "tenants.yaml", record()

    after = edit_tenants_file(path, lambda before: add_key(before, "alice", key, 2.5))

    assert read_tenants_file(path) == after
    assert after.tenants["alice"].weight == 2.5
    assert after.tenants["alice"].keys == (key,)


def test_names_that_yaml_reads_as_something_else_survive(tmp_path: Path) -> None:
    """A tenant may be called 123, true or null."""
    path = tmp_path / "tenants.yaml"
    names = ["123", "true", "null", "1e5", "2026-01-01"]
    for name in names:
        edit_tenants_file(path, partial(add_key, tenant=name, key=record()))

    assert list(read_tenants_file(path).tenants) == names


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is empty; allowed fields: keys_required, default_weight, default_class, default_tok"),
        ("- alice\n", "the file holds no fields"),
        ("keys_requird: true\n", "keys_requird is no known field; allowed here: keys_required"),
        ("keys_required: 'yes'\n", "keys_required is 'yes', but it should be a valid boolean"),
        (
            "tenants: {alice: {wieght: 1}}",
            "tenants.alice.wieght is no known field; allowed here: weight, class, tokens_per_min",
        ),
        ("tenants: {alice: {weight: 0}}", "weight 0 is not allowed: from 0.001 to 1000"),
        ("tenants: {alice: {weight: -1}}", "tenants.alice.weight: weight -1 is not allowed"),
        ("tenants: {alice: {weight: .nan}}", "weight nan is not allowed"),
        ("tenants: {alice: {weight: .inf}}", "weight inf is not allowed"),
        ("tenants: {alice: {weight: '2'}}", "tenants.alice.weight is '2', but it should be"),
        (
            "tenants: {a: {class: gold}}",
            "tenants.a.class is 'gold', but it should be 'interactive' or",
        ),
        ("tenants: {a: {class_name: batch}}", "tenants.a.class_name is no known field"),
        (
            "default_class: gold\n",
            "default_class is 'gold', but it should be 'interactive' or 'batch'",
        ),
        (
            "tenants: {a: {tokens_per_minute: 0}}",
            "tenants.a.tokens_per_minute: '0' is not allowed: a whole number from 2 to 10000000000",
        ),
        ("tenants: {a: {tokens_per_minute: 1}}", "tokens_per_minute: '1' is not allowed"),
        ("tenants: {a: {tokens_per_minute: 1.5}}", "tokens_per_minute: '1.5' is not allowed"),
        ("tenants: {a: {tokens_per_minute: '9'}}", "tokens_per_minute: '9' is not allowed"),
        (
            "tenants: {a: {max_concurrent: 0}}",
            "max_concurrent: '0' is not allowed: a whole number f",
        ),
        ("tenants: {a: {max_concurrent: -3}}", "max_concurrent: '-3' is not allowed"),
        ("tenants: {a: {max_concurrent: true}}", "max_concurrent: 'True' is not allowed"),
        ("tenants: {a: {max_concurrent: none}}", "from 1 to 1000000000000, or 'unlimited'"),
        ("default_max_concurrent: .inf\n", "default_max_concurrent: 'inf' is not allowed"),
        ("default_weight: 0\n", "default_weight: weight 0 is not allowed"),
        ("tenants: {alice: }", "tenants.alice holds no fields"),
        ("tenants: {'a b': {}}", "tenant name 'a b' is not allowed: 1 to 64 letters, digits"),
        ("tenants: {123: {}}", "tenants.123 is not text: put the tenant's name in quotes"),
        ("tenants: {alice: {}, alice: {}}", "line 1: 'alice' is given twice"),
        (
            f"tenants: {{a: {{keys: [{KEY}]}}, b: {{keys: [{KEY}]}}}}",
            "key id 3f2a90c4d1e8 is given",
        ),
        ("tenants: {a: {keys: [{id: x}]}}", "tenants.a.keys.0.id is 'x', but it should match"),
        ("tenants: {a: {keys: [{id: 3f2a90c4d1e8}]}}", "tenants.a.keys.0.hash is missing"),
        ("tenants: [\n", "line 2: "),
        ("when: 2026-99-99\n", "is not readable as YAML"),
        ("\x00", "is not readable as YAML"),
    ],
)
def test_what_is_not_allowed_is_named_with_what_is(content: str, sentence: str) -> None:
    """Every mistake is one sentence: the file, the field, what it says and what it may say."""
    with pytest.raises(TenantsFileError) as refused:
        parse_tenants(Path("tenants.yaml"), content.encode())

    assert str(refused.value).startswith("tenants file tenants.yaml: ")
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_named_with_what_makes_one(tmp_path: Path) -> None:
    """Without the file the message says how to get one."""
    with pytest.raises(TenantsFileError, match=r"no such file; `fastswitch keys make TENANT"):
        read_tenants_file(tmp_path / "tenants.yaml")


def test_a_folder_in_the_files_place_is_named(tmp_path: Path) -> None:
    """What cannot be read is an error with the system's reason."""
    with pytest.raises(TenantsFileError, match="cannot be read: Is a directory"):
        read_tenants_file(tmp_path)


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    """What cannot be written is an error with the system's reason."""
    with pytest.raises(TenantsFileError, match="cannot be written: No such file or directory"):
        edit_tenants_file(tmp_path / "missing" / "tenants.yaml", lambda before: before)


def test_only_the_owner_may_read_the_file(tmp_path: Path) -> None:
    """The file is private from its first moment, and again after every change."""
    path = tmp_path / "tenants.yaml"
    for _ in range(2):
        edit_tenants_file(path, lambda before: add_key(before, "alice", record()))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        path.chmod(0o644)


def test_a_refused_change_leaves_the_file_and_the_folder_alone(tmp_path: Path) -> None:
    """A change that cannot be made leaves what was there, and no drafts."""
    path = tmp_path / "tenants.yaml"
    edit_tenants_file(path, lambda before: add_key(before, "alice", record()))
    content = path.read_bytes()

    with pytest.raises(TenantNameError):
        edit_tenants_file(path, lambda before: add_key(before, "not a name", record()))
    with pytest.raises(WeightError):
        edit_tenants_file(path, lambda before: add_key(before, "alice", record(), float("nan")))
    with pytest.raises(UnknownKeyIdError):
        edit_tenants_file(path, lambda before: revoke_key(before, "000000000000", NOW))

    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def test_a_broken_file_is_not_overwritten(tmp_path: Path) -> None:
    """Making a key never throws away what an operator mistyped."""
    path = tmp_path / "tenants.yaml"
    path.write_text("tenants: {alice: {weight: two}}\n", encoding="utf-8")

    with pytest.raises(TenantsFileError):
        edit_tenants_file(path, lambda before: add_key(before, "bob", record()))

    assert path.read_text(encoding="utf-8") == "tenants: {alice: {weight: two}}\n"


def test_a_link_to_the_file_stays_a_link(tmp_path: Path) -> None:
    """A mounted secret is a link: a change goes to what it points to."""
    target, link = tmp_path / "mounted.yaml", tmp_path / "tenants.yaml"
    edit_tenants_file(target, lambda before: add_key(before, "alice", record()))
    link.symlink_to(target)

    edit_tenants_file(link, lambda before: add_key(before, "bob", record()))

    assert link.is_symlink()
    assert set(read_tenants_file(target).tenants) == {"alice", "bob"}


def test_revoking_twice_keeps_the_first_date() -> None:
    """When a key was taken back does not change by doing it again."""
    key = record()
    settings = add_key(TenantsFile(), "alice", key)

    once = revoke_key(settings, key.id, NOW)
    twice = revoke_key(once, key.id, LATER)

    assert twice.tenants["alice"].keys[0].revoked == NOW


def test_a_new_key_leaves_the_tenants_weight_alone() -> None:
    """A weight set once stays until another is given."""
    settings = add_key(TenantsFile(), "alice", record(), 4.0)

    settings = add_key(settings, "alice", record())

    assert settings.tenants["alice"].weight == 4.0


def test_a_new_key_leaves_class_and_limits_alone(tmp_path: Path) -> None:
    """Making a key rewrites the file, and all that it said of the tenants still stands."""
    path = tmp_path / "tenants.yaml"
    path.write_text(
        "default_max_concurrent: 5\n"
        "tenants: {alice: {class: batch, tokens_per_minute: 1000, max_concurrent: unlimited}}\n",
        encoding="utf-8",
    )
    before = read_tenants_file(path)

    edit_tenants_file(path, lambda settings: add_key(settings, "alice", record()))

    after = read_tenants_file(path)
    assert after.model_copy(update={"tenants": before.tenants}) == before
    assert after.tenants["alice"].model_copy(update={"keys": ()}) == before.tenants["alice"]


def test_times_are_times_whatever_other_libraries_do_to_yaml(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that vLLM loads has all of PyYAML's loaders leave times as text."""
    constructors = yaml.CSafeLoader.yaml_constructors
    monkeypatch.setitem(constructors, "tag:yaml.org,2002:timestamp", lambda _, node: node.value)
    path = tmp_path / "tenants.yaml"
    path.write_text(f"tenants: {{a: {{keys: [{KEY}]}}}}")

    assert read_tenants_file(path).tenants["a"].keys[0].created == NOW


def test_programs_that_edit_at_once_lose_nothing(tmp_path: Path) -> None:
    """Keys made by several processes at the same moment are all in the file."""
    code = "import sys; from app.cli.main import main; sys.exit(main())"
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    makers = [
        subprocess.Popen(
            [sys.executable, "-c", code, "keys", "make", f"tenant-{number % 3}"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for number in range(6)
    ]

    assert [maker.wait(timeout=60) for maker in makers] == [0] * 6

    tenants = read_tenants_file(tmp_path / "tenants.yaml").tenants
    assert {name: len(tenant.keys) for name, tenant in tenants.items()} == {
        "tenant-0": 2,
        "tenant-1": 2,
        "tenant-2": 2,
    }


def test_errors_cross_processes_whole() -> None:
    """Ray pickles errors by their arguments: the message survives."""
    for error in (
        TenantsFileError(Path("t.yaml"), "is empty"),
        TenantNameError("a b", "letters"),
        WeightError(0.0, 1.0, 2.0),
        UnknownKeyIdError("x"),
    ):
        assert str(pickle.loads(pickle.dumps(error))) == str(error)  # noqa: S301  (our own)
