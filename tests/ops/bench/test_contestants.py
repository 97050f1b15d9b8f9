"""The baseline differs from our server in nothing but what is ours."""

from pathlib import Path

import pytest
import yaml

from app.demo_model import write_demo_model
from app.settings import AppArgs
from ops.bench.contestants import baseline_command, fastswitch_command, note


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> AppArgs:
    """Settings with something of every kind that a command line can carry."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    write_demo_model(folder, "tiny")
    return AppArgs(
        model=str(folder),
        device="cpu",
        replicas=1,
        max_num_seqs=7,
        served_model_name="ours",
        engine_args={
            "enable_prefix_caching": False,
            "enforce_eager": True,
            "compilation_config": {"mode": 0},
        },
    )


def test_the_baseline_gets_the_engine_arguments_of_ours(settings: AppArgs) -> None:
    """Every argument is written as vLLM's command line wants it; what is unset is left out."""
    line = " ".join(baseline_command(settings).argv)
    assert "--max-num-seqs 7 " in line
    assert "--dtype float32" in line
    assert f"--kv-cache-memory-bytes {2**30}" in line
    assert "--served-model-name ours" in line
    assert "--no-enable-prefix-caching --enforce-eager" in line
    assert '--compilation-config {"mode": 0}' in line
    assert "None" not in line


def test_the_baseline_has_nothing_of_ours(settings: AppArgs) -> None:
    """No scheduler, connector or policy, and vLLM's own choice of processes."""
    command = baseline_command(settings)
    assert not {"--scheduler-cls", "--kv-transfer-config", "--scheduling-policy"} & set(
        command.argv
    )
    assert "VLLM_ENABLE_V1_MULTIPROCESSING" not in command.environment
    assert "OMP_NUM_THREADS" in command.environment


def test_vllm_understands_the_baselines_command_line(settings: AppArgs) -> None:
    """Its own parser takes every flag and sees the values that were meant."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    argv = [argument.replace("{port}", "8000") for argument in baseline_command(settings).argv[3:]]
    parsed = make_arg_parser(FlexibleArgumentParser()).parse_args(argv)
    assert (parsed.max_num_seqs, parsed.enable_prefix_caching, parsed.enforce_eager) == (
        7,
        False,
        True,
    )
    assert (parsed.model, parsed.served_model_name) == (settings.model, ["ours"])


def test_ours_is_started_as_users_start_it(settings: AppArgs) -> None:
    """The command, the model, the number of engines."""
    argv = fastswitch_command(settings).argv
    assert Path(argv[0]).name == "fastswitch"
    assert argv[1] == "serve"
    assert argv[-4:] == ("--model", settings.model, "--replicas", "1")


def test_ours_is_told_the_settings_that_are_named(settings: AppArgs) -> None:
    """Each as the command line takes it, and as the server then reads it."""
    argv = fastswitch_command(settings, "max_num_seqs", "fairness").argv
    given = dict(text.partition("=")[::2] for text in argv[argv.index("--set") + 1 :: 2])
    read = AppArgs.model_validate({name: yaml.safe_load(text) for name, text in given.items()})
    assert (read.max_num_seqs, read.fairness) == (7, settings.fairness)


def test_the_note_says_what_the_baseline_ran_with(settings: AppArgs) -> None:
    """Environment and command line, as one would type them."""
    text = note(baseline_command(settings))
    assert text.startswith("VLLM_NO_USAGE_STATS=1 ")
    assert "-m vllm.entrypoints.launchers.api_server.entry --host 127.0.0.1" in text
