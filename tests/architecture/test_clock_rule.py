"""The clock rule: the linter refuses every other clock and luck, and is seen to do so."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# The places where live code meets the clock; each says why in its comment.
EXCEPTIONS = {"reference_impl/live/loop.py": 1, "reference_impl/live/wall_clock.py": 1}

VIOLATIONS = [
    "import time\n\nnow = time.time()\n",
    "import time\n\nnow = time.monotonic()\n",
    "from time import perf_counter\n\nnow = perf_counter()\n",
    "from datetime import datetime\n\nnow = datetime.now()\n",
    "import random\n\nluck = random.random()\n",
    "import numpy as np\n\nluck = np.random.rand(3)\n",
    "import asyncio\n\nready = asyncio.as_completed([])\n",
]


def lint(code: str, name: str) -> str:
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "ruff",
            "check",
            "--quiet",
            "--select",
            "TID251",
            "--stdin-filename",
            name,
            "-",
        ],
        input=code,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return result.stdout


@pytest.mark.parametrize("code", VIOLATIONS)
@pytest.mark.parametrize("folder", ["reference_impl", "simulation"])
def test_the_linter_refuses_another_clock_or_luck(code: str, folder: str) -> None:
    assert "TID251" in lint(code, f"{folder}/example.py")


def test_the_linter_accepts_the_clock_of_the_loop() -> None:
    code = "import asyncio\n\n\ndef now() -> float:\n    return asyncio.get_running_loop().time()\n"
    assert lint(code, "reference_impl/example.py") == ""


def test_exceptions_from_the_rule_are_few_and_known() -> None:
    found = {
        str(path.relative_to(ROOT)): count
        for folder in ("reference_impl", "simulation")
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (count := path.read_text("utf-8").count("noqa: TID251"))
    }
    assert found == EXCEPTIONS


def calls(name: str) -> Iterator[str]:
    """Files under the rule that call `name`, as `path:line`."""
    for folder in ("reference_impl", "simulation"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == name:
                    yield f"{path.relative_to(ROOT)}:{node.lineno}"


def test_the_built_in_hash_is_not_used_because_it_is_salted_per_process() -> None:
    """The linter cannot ban a built-in."""
    assert list(calls("hash")) == []


def test_asyncio_wait_is_used_only_by_live_processes_because_its_sets_are_ordered_by_address() -> (
    None
):
    live = ("reference_impl/live/", "reference_impl/instances/child_process.py")
    assert [c for c in calls("asyncio.wait") if not c.startswith(live)] == []
