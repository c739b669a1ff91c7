"""Clients that cannot share our environment: older lines of the SDK, and the TypeScript SDK.

Each is installed from its package registry into a throw-away folder, and runs a small program against the mock.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import venv
from pathlib import Path
from typing import Any

import msgspec
import pytest

from tests.loadtests.mock.process import Mock

pytestmark = [pytest.mark.soak, pytest.mark.timeout(600)]

_HERE = Path(__file__).parent

_EXPECTED: dict[str, Any] = {
    "create": ["text", "max_tokens", 30],
    "stream": True,
    "tool": ["tool_use", {"n": 0}],
    "thinking": ["thinking", "text"],
    "count": 5,
    "models": True,
    "batch": [["0", "succeeded"], ["1", "succeeded"], ["2", "succeeded"]],
    "errors": {
        kind: int(kind) for kind in ("400", "401", "403", "404", "413", "429", "500", "503", "529")
    },
}


def _run(*command: str | Path, cwd: Path) -> bytes:
    done = subprocess.run(
        command, cwd=cwd, env=_environment(), capture_output=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    return done.stdout


def _environment() -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("ANTHROPIC", "PYTHON"))}
    return {**kept, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}


def _check(output: bytes) -> dict[str, Any]:
    seen: dict[str, Any] = msgspec.json.decode(output.splitlines()[-1])
    assert {name: seen[name] for name in _EXPECTED} == _EXPECTED
    assert 0.4 <= seen["retried_after_s"] < 2.0  # twice 0.2 s, as told
    assert seen["broken"] != "unnoticed"
    return seen


@pytest.mark.parametrize("version", ["0.125.0", "1.17.0"])
def test_the_last_versions_of_older_lines_of_the_sdk(
    mock: Mock, tmp_path: Path, version: str
) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv" / "bin" / "python"
    _run(python, "-m", "pip", "install", "--quiet", f"anthropic=={version}", cwd=tmp_path)
    seen = _check(_run(python, _HERE / "sdk_client.py", mock.url, cwd=tmp_path))
    assert seen["version"] == version


def test_the_typescript_sdk(mock: Mock, tmp_path: Path) -> None:
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    shutil.copy(_HERE / "typescript_client.mjs", tmp_path)
    _run("npm", "install", "--silent", "--no-fund", "--no-audit", "@anthropic-ai/sdk", cwd=tmp_path)
    _check(_run("node", "typescript_client.mjs", mock.url, cwd=tmp_path))
