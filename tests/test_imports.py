"""Who may import whom: the packages point one way, and vLLM stays behind its adapters."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("app", "deployments", "scheduler", "kv", "ops")
# What a module may import of the packages: the rule of the longest name that it stands under.
ALLOWED = {
    "app": ("app.*", "deployments.*", "scheduler.*", "kv.*", "ops.metrics.*", "ops.tracing*"),
    "app.cli.bench": ("app.*", "ops.bench.*"),
    "app.cli.dashboards": ("app.*", "ops.dashboards.*"),
    "deployments": ("deployments.*", "scheduler.*", "kv.*", "ops.metrics.*", "ops.tracing*"),
    "scheduler": ("scheduler.*",),
    "kv": ("kv.*",),
    "ops": ("ops.*", "app.*", "deployments.*", "scheduler.*", "kv.*"),
    "ops.metrics": ("ops.metrics.*",),
    "ops.tracing": ("ops.tracing*",),
}
ADAPTERS = ("scheduler.vllm_*", "kv.vllm_*", "deployments.vllm_*", "ops.bench.*")


def modules(*packages: str) -> Iterator[tuple[str, Path]]:
    for package in packages:
        for path in sorted((ROOT / package).rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(part for part in parts if part != "__init__"), path


def imports(path: Path) -> set[str]:
    """Modules named in import statements, wherever in the file they stand."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def allowed(module: str) -> tuple[str, ...]:
    names = [name for name in ALLOWED if f"{module}.".startswith(f"{name}.")]
    return ALLOWED[max(names, key=len)]


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    """App, deployments, then scheduler and kv, which do not know each other; ops beside them."""
    wrong = [
        f"{module} imports {name}"
        for module, path in modules(package)
        for name in imports(path)
        if name.partition(".")[0] in PACKAGES and "." in name
        if not any(fnmatch(name, pattern) for pattern in allowed(module))
    ]
    assert wrong == []


def test_only_adapters_touch_vllm() -> None:
    """A new release of vLLM changes one module per package."""
    wrong = [
        f"{module} imports {name}"
        for module, path in modules(*PACKAGES)
        for name in imports(path)
        if name.partition(".")[0] == "vllm"
        if not any(fnmatch(module, pattern) for pattern in ADAPTERS)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("package", "unknown"),
    [
        ("scheduler", {"ray", "torch", "fastapi", "starlette", "zmq"}),
        ("kv", {"ray", "fastapi", "starlette", "zmq"}),
        ("app", {"torch"}),
        ("deployments", {"torch"}),
    ],
)
def test_a_package_knows_nothing_of_what_others_own(package: str, unknown: set[str]) -> None:
    """The scheduler knows no Ray, HTTP or bytes; kv no Ray or HTTP; the rest nothing of tensors."""
    wrong = [
        f"{module} imports {name}"
        for module, path in modules(package)
        for name in imports(path)
        if name.partition(".")[0] in unknown
    ]
    assert wrong == []


def test_the_application_is_built_without_loading_an_engine() -> None:
    """Router and replicas load neither torch nor vLLM, which take seconds and a gigabyte."""
    program = (
        "import sys, app.build\n"
        "assert {'deployments.router', 'deployments.engine_replica'} <= sys.modules.keys()\n"
        "print(*sorted({'torch', 'vllm', 'transformers'} & sys.modules.keys()))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.split() == []


def test_without_tracing_nothing_of_it_is_loaded() -> None:
    """Gateways load what makes and sends spans once they are told where to."""
    program = (
        "import sys, app.build, deployments.vllm_client\n"
        "print(*sorted(name for name in sys.modules if name.startswith('ops.tracing.')))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert loaded.stdout.split() == ["ops.tracing.names", "ops.tracing.plan"]
