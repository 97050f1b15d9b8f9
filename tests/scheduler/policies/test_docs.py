"""What docs/policies.md says is so: its example runs, and its lists are whole."""

import re
from pathlib import Path

import pytest
import yaml

from app.settings import FairnessSettings
from scheduler.policies.catalogue import POLICIES
from tests.scheduler.policies.stand_in import StandInEngine, make_policy, make_request

DOC = (Path(__file__).parents[3] / "docs" / "policies.md").read_text(encoding="utf-8")
LINES = re.findall(r"^    (fairness: .*)$", DOC, re.MULTILINE)
CHOICES = [yaml.safe_load(line)["fairness"] for line in LINES]


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FairnessSettings:
    """The settings that choose the example, whose file can be imported in this test alone."""
    [source] = re.findall(r"```python\n(.*?)```", DOC, re.DOTALL)
    [chosen] = [choice for choice in CHOICES if ":" in choice["policy"]]
    module, _ = chosen["policy"].split(":")
    (tmp_path / f"{module}.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return FairnessSettings(**chosen)


def test_the_example_runs(example: FairnessSettings) -> None:
    """Short prompts overtake long ones, until these have waited long enough."""
    engine = StandInEngine(make_policy(example), step_s=1.0)
    long = engine.add(make_request(prompt_tokens=500, max_output_tokens=1))
    first = engine.add(make_request(prompt_tokens=10, max_output_tokens=1))
    for _ in range(100):
        engine.step()
        engine.add(make_request(prompt_tokens=10, max_output_tokens=1))

    assert engine.first_token_s[first.request_id] <= 3.0
    assert 3.0 < engine.first_token_s[long.request_id] < 30.0


def test_every_policy_has_its_line() -> None:
    """A section of its own with the line that chooses it, and settings take each of them."""
    settings = [FairnessSettings(**choice) for choice in CHOICES if ":" not in choice["policy"]]

    assert {each.policy for each in settings} | {"random"} == {*POLICIES}
    for policy in POLICIES:
        assert f"`{policy}`" in DOC


def test_every_setting_is_listed() -> None:
    """With the default that it has."""
    rows = re.findall(r"^\| (`[a-z_`, ]+`) \| (.*?) \|", DOC, re.MULTILINE)
    listed = {name: cell for names, cell in rows for name in re.findall(r"[a-z_]+", names)}

    assert FairnessSettings.model_fields.keys() <= listed.keys()
    for name in ("quantum", "batch_lag", "slack_quantum_s", "update_frequency", "update_s", "seed"):
        assert float(listed[name]) == FairnessSettings.model_fields[name].default
