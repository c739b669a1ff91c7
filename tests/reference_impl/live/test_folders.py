"""A process whose folders cannot be used says so in one line and ends with status 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from reference_impl.database.connect import DSN_VARIABLE


@pytest.mark.parametrize(
    ("role", "field", "unusable"),
    [
        ("gateway", "run_dir", "a file"),
        ("gateway", "ledger_dir", "in a file"),
        ("instance", "run_dir", "read only"),
    ],
)
def test_a_folder_that_cannot_be_used_is_one_line_and_status_2(
    tmp_path: Path, role: str, field: str, unusable: str
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    folder = {"a file": file, "in a file": file / "under", "read only": Path("/proc/none")}[
        unusable
    ]
    config = tmp_path / "config.json"
    config.write_text(
        json.dumps(
            {
                "deployment": {"database": {"ledger": "memory"}},
                "upstream_url": "http://127.0.0.1:9",
                field: str(folder),
            }
        )
    )
    command = [sys.executable, "-m", "reference_impl.service", role, "--config", str(config)]
    ended = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, DSN_VARIABLE: ""},
    )
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.startswith(f"error: {folder}")
    assert len(ended.stderr.splitlines()) == 1, ended.stderr
    assert "must be folders that can be written" in ended.stderr
