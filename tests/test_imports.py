"""Imports between the folders point one way, as the design draws them."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("app", "deployments", "scheduler", "kv", "ops")

# What each folder may import beside itself. What an operator runs may use everything.
ALLOWED = {
    "scheduler": (),
    "kv": (),
    "deployments": ("scheduler", "kv", "ops.metrics"),
    "app": ("deployments", "scheduler", "kv", "ops.metrics"),
    "ops": PACKAGES,
}
# `fastswitch bench` only starts what ops/bench does.
ALLOWED_IN_FILES = {"app/cli/bench.py": ("ops.bench",)}
# Who runs next and where KV lies are questions that a single engine has too.
NO_RAY = ("scheduler", "kv")


def _imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            modules |= {f"{node.module}.{alias.name}" for alias in node.names}
    return modules


def _is_within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


@pytest.mark.parametrize("package", PACKAGES)
def test_a_folder_imports_only_what_stands_below_it(package: str) -> None:
    """No module of a folder imports from a folder that the design puts beside or above it."""
    wrong = []
    for path in sorted((ROOT / package).rglob("*.py")):
        name = str(path.relative_to(ROOT))
        allowed = (package, *ALLOWED[package], *ALLOWED_IN_FILES.get(name, ()))
        for module in _imported_modules(path):
            is_ours = any(_is_within(module, ours) for ours in PACKAGES)
            if is_ours and not any(_is_within(module, target) for target in allowed):
                wrong.append(f"{name}: {module}")
    assert not wrong


@pytest.mark.parametrize("package", NO_RAY)
def test_scheduler_and_kv_know_no_ray(package: str) -> None:
    """Fairness and KV run without Ray: no module of theirs imports it."""
    wrong = [
        f"{path.relative_to(ROOT)}: {module}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for module in _imported_modules(path)
        if _is_within(module, "ray")
    ]
    assert not wrong
