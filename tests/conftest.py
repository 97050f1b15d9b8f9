"""What all tests share: a random seed that can be set again, quick tests first, engines offline.

Fixtures that start engines or a cluster stand beside the tests that use them.
"""

import os
import random

import pytest
from hypothesis import settings

# Before anything imports vLLM, Ray or transformers: they read these once, and child processes
# inherit them. Tests never download or report, and several engines may share two cores.
os.environ.update(
    HF_HUB_OFFLINE="1",
    VLLM_NO_USAGE_STATS="1",
    RAY_USAGE_STATS_ENABLED="0",
    VLLM_LOGGING_LEVEL="WARNING",
    VLLM_CPU_KVCACHE_SPACE="1",
    OMP_NUM_THREADS="1",
)

# No deadline per example: on a shared machine a pause of the machine's would fail a test.
settings.register_profile("fastswitch", deadline=None)
settings.load_profile("fastswitch")

_SLOWEST_LAST = ("engine", "cluster")


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--seed N`` runs the random tests of an earlier run again."""
    parser.addoption("--seed", type=int, help="seed of the random tests; default: a new one")


def pytest_configure(config: pytest.Config) -> None:
    """Draw the seed once, so that the header and every test see the same."""
    if config.option.seed is None:
        config.option.seed = random.randrange(2**32)


def pytest_report_header(config: pytest.Config) -> str:
    """Name the seed, so that a failure can be repeated."""
    return f"random seed: {config.option.seed} (again with --seed {config.option.seed})"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unmarked tests first, then those with an engine, then those with a cluster."""
    items.sort(key=_slowness)


def _slowness(item: pytest.Item) -> int:
    return max(
        (rank for rank, mark in enumerate(_SLOWEST_LAST, 1) if item.get_closest_marker(mark)),
        default=0,
    )


@pytest.fixture
def seed(request: pytest.FixtureRequest) -> int:
    """The seed of this run's random tests."""
    return int(request.config.option.seed)
