"""`bench displace` counts the steps an urgent request waits for a full batch."""

from argparse import ArgumentParser
from pathlib import Path

import pytest
from rich.console import Console

from app.demo_model import write_demo_model
from ops.bench import displace
from ops.bench.displace import compare, make_trial, table
from ops.bench.stepped import TrialResult


def test_a_trial_follows_from_its_seed() -> None:
    """Both engines get the same requests; no two trials share a prompt that may be cached."""
    assert make_trial("1", 3) == make_trial("1", 3)
    prompts = [tuple(one.prompt) for seed in "12" for one in make_trial(seed, 3).background]
    assert len(set(prompts)) == 6


def test_the_urgent_request_alone_needs_no_lead() -> None:
    """The floor is measured in an empty engine: there is nothing to step before."""
    assert make_trial("1", 0).lead_steps == 0
    assert make_trial("1", 3).lead_steps > 0


def test_the_result_has_the_keys_that_are_documented() -> None:
    """Three modes, the speedup of ours over vLLM's, and whether outputs are equal."""
    theirs = TrialResult(270, 0.9, 1.0, [[1], [2]])
    ours = TrialResult(1, 0.009, 1.25, [[1], [2]])
    alone = TrialResult(1, 0.006, 0.1, [[2]])
    results = {"vllm_priority": [theirs] * 2, "fastswitch": [ours] * 2, "alone": [alone] * 2}

    keys = compare(results)

    assert keys["modes"]["vllm_priority"]["first_token_steps"] == {"p50": 270, "max": 270}
    assert keys["modes"]["fastswitch"]["ttft_ms"] == {"p50": 9.0, "p99": 9.0}
    assert keys["speedup"] == {"ttft_p50": 100.0, "ttft_p99": 100.0, "drained": 0.8}
    assert keys["outputs_equal"] is True
    console = Console(record=True, width=100)
    console.print(table({**keys, "max_num_seqs": 8}))
    assert "270" in console.export_text()


def test_one_token_that_differs_is_told() -> None:
    """Displacing must not change what anybody gets."""
    theirs, ours = TrialResult(9, 0.9, 1.0, [[1], [2]]), TrialResult(1, 0.1, 1.0, [[1], [3]])
    keys = compare({"vllm_priority": [theirs], "fastswitch": [ours], "alone": [ours]})
    assert keys["outputs_equal"] is False


@pytest.mark.engine
@pytest.mark.timeout(600)
def test_an_urgent_request_gets_its_first_token_within_two_steps_and_its_prefill(
    tmp_path: Path,
) -> None:
    """On real engines: at most three steps where vLLM's policy waits for somebody to end."""
    write_demo_model(tmp_path / "tiny", "tiny")
    parser = ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    displace.add_arguments(parser)
    options = parser.parse_args(
        ["--model", str(tmp_path / "tiny"), "--max-num-seqs", "4", "--trials", "1"]
    )
    keys = displace.run(options).keys
    assert keys["modes"]["fastswitch"]["first_token_steps"]["max"] <= 3
    assert keys["modes"]["vllm_priority"]["first_token_steps"]["p50"] > 100
    assert keys["outputs_equal"] is True
