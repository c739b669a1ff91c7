"""The dependency rule: `reference_impl <- simulation <- loadtests`, and reports beside them (docs/architecture.md)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OURS = ("reference_impl", "simulation", "loadtests", "reports", "tests", "twinload")

# Who may import what of ours: the longest matching prefix of the importing module decides.
ALLOWED = {
    "reference_impl": ("reference_impl",),
    "simulation": (),
    "simulation.scenario": ("reference_impl", "simulation.scenario"),
    "simulation.statistics": (),
    "simulation.kernel": ("simulation.kernel",),
    "simulation.models": (
        "reference_impl",
        "simulation.scenario",
        "simulation.statistics",
        "simulation.kernel",
        "simulation.models",
    ),
    "simulation.models.llm_endpoint": (
        "reference_impl",
        "simulation.scenario",
        "simulation.models.endpoint",
    ),
    "simulation.models.endpoint": (
        "reference_impl",
        "simulation.scenario",
        "simulation.models.endpoint",
    ),
    "simulation.world": (
        "reference_impl",
        "simulation.scenario",
        "simulation.statistics",
        "simulation.kernel",
        "simulation.models",
    ),
    "simulation.wire_world": (
        "reference_impl",
        "simulation.scenario",
        "simulation.kernel",
        "simulation.models",
    ),
    "simulation.experiments": ("reference_impl", "simulation"),
    "loadtests": ("reference_impl", "simulation", "loadtests"),
    "reports": (
        "reference_impl.telemetry",
        "reference_impl.deployment",
        "simulation.scenario",
        "simulation.statistics",
        "reports",
    ),
}
# Libraries that only some folders may import.
CONFINED = {
    "simpy": ("simulation.kernel",),
    "locust": ("loadtests",),
    "gevent": ("loadtests",),
    "geventhttpclient": ("loadtests",),
    "matplotlib": ("reports", "simulation.experiments", "reference_impl.caches.evaluation"),
}


def modules() -> list[Path]:
    return sorted(
        path
        for folder in ("reference_impl", "simulation", "loadtests", "reports")
        for path in (ROOT / folder).rglob("*.py")
    )


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative imports hide the folder"
            yield node.lineno, node.module or ""


def starts_with(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def allowed_for(module: str) -> tuple[str, ...]:
    return ALLOWED[max((p for p in ALLOWED if starts_with(module, p)), key=len)]


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_module_imports_only_what_its_folder_may(path: Path) -> None:
    module = name_of(path)
    allowed = allowed_for(module)
    wrong = [
        f"line {line}: {imported}"
        for line, imported in imports_of(path)
        if imported.partition(".")[0] in OURS
        and not any(starts_with(imported, prefix) for prefix in allowed)
    ]
    assert wrong == [], f"{module} may import only {', '.join(allowed) or 'nothing'} of ours"


@pytest.mark.parametrize("path", modules(), ids=name_of)
def test_a_confined_library_stays_in_its_folder(path: Path) -> None:
    module = name_of(path)
    wrong = [
        f"line {line}: {imported}"
        for line, imported in imports_of(path)
        for folders in [CONFINED.get(imported.partition(".")[0])]
        if folders is not None and not any(starts_with(module, folder) for folder in folders)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("module", "forbidden"),
    [
        ("simulation.scenario.spec", ("simpy", "locust", "pandas", "matplotlib")),
        ("simulation.scenario.workload", ("simpy", "locust", "pandas", "matplotlib")),
        ("simulation.models.llm_endpoint", ("simpy", "locust", "pandas", "matplotlib")),
        ("loadtests.mock_llm", ("simpy", "locust", "pandas", "matplotlib")),
        ("reference_impl.service", ("simpy", "locust", "pandas", "anthropic", "simulation")),
        ("simulation.world", ("locust", "uvloop", "aiohttp", "anthropic", "matplotlib")),
        (
            "twinload",
            ("simpy", "locust", "pandas", "matplotlib", "aiohttp", "reports", "simulation"),
        ),
    ],
)
def test_importing_a_module_does_not_load(module: str, forbidden: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(sorted(set({forbidden!r}) & sys.modules.keys()))"
    found = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert found.stdout.strip() == "[]"


def test_package_files_hold_no_code() -> None:
    """`__init__.py` files are empty, a docstring, or the names that a folder offers."""
    wrong = []
    for path in modules():
        if path.name != "__init__.py":
            continue
        for node in ast.parse(path.read_text("utf-8")).body:
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            names = isinstance(node, ast.ImportFrom) or (
                isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
            )
            if not (docstring or names):
                wrong.append(f"{name_of(path)}: line {node.lineno}")
    assert wrong == []
