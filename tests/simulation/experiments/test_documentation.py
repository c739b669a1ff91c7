"""docs/experiments.md: its example prints what it says, and it names every column and option."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest

from simulation.experiments.commands import COMMANDS
from simulation.experiments.measuring import METRICS

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "experiments.md").read_text("utf-8")


def test_the_example_prints_what_the_page_says() -> None:
    code = PAGE.split("```python\n")[1].split("```")[0]
    expected = PAGE.split("```text\n")[1].split("```")[0]
    ran = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert ran.stdout == expected


def test_every_column_is_explained() -> None:
    for name, meaning in METRICS.items():
        assert f"| `{name}` | {meaning} |" in PAGE


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_is_on_the_page_and_each_example_is_understood(
    command: click.Command,
) -> None:
    assert f"`twinload {command.name} SCENARIO" in PAGE
    options = {name for parameter in command.params for name in parameter.opts}
    for line in PAGE.splitlines():
        if f"`twinload {command.name} SCENARIO" in line:
            example = line.split("`twinload ")[1].split("`")[0]
            assert {word for word in example.split() if word.startswith("--")} <= options
