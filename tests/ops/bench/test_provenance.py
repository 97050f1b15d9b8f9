"""A number says what it was measured with."""

import subprocess
from pathlib import Path

from ops.bench.provenance import commit, cpu_model, provenance


def test_a_result_names_machine_versions_and_commit() -> None:
    """All that is needed to judge the number, or to make it again."""
    origin = provenance()
    assert set(origin) == {"machine", "versions", "commit"}
    assert set(origin["versions"]) == {"vllm", "ray", "torch", "fastswitch", "python"}
    assert origin["machine"]["cores"] > 0
    assert origin["machine"]["memory_gib"] > 0


def test_files_that_differ_from_the_commit_are_told(tmp_path: Path) -> None:
    """A number measured with changed code must not pass for the commit's."""

    def git(*arguments: str) -> None:
        identity = ("-c", "user.name=t", "-c", "user.email=t@t")
        subprocess.run(["git", *identity, *arguments], cwd=tmp_path, check=True)  # noqa: S607

    git("init", "--quiet")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "--quiet", "--message=a")
    clean = commit(tmp_path)
    (tmp_path / "a").write_text("2")

    assert clean is not None
    assert len(clean) == 40
    assert commit(tmp_path) == f"{clean}+changes"


def test_outside_a_checkout_there_is_no_commit(tmp_path: Path) -> None:
    """An installed package has no git around it."""
    assert commit(tmp_path) is None


def test_the_processor_is_named_where_it_has_a_name() -> None:
    """Arm's /proc/cpuinfo has none: then the architecture has to do."""
    assert cpu_model("processor\t: 0\nmodel name\t: Fast One\n") == "Fast One"
    assert cpu_model("processor\t: 0\nBogoMIPS\t: 50\n")
