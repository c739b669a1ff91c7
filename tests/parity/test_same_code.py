"""The very same code on both clocks, measured: the lines of `reference_impl` that a live run executes, and which of them run
in virtual time too. What does not is adapters, and they are listed."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from coverage import CoverageData

from simulation.scenario.spec import load_scenario, to_yaml

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "reference_impl"

pytestmark = [pytest.mark.serial, pytest.mark.timeout(300)]

# Where virtual time never enters: sockets, child processes, signals, the operating system's clocks, drivers and files.
ADAPTERS = {
    "caches/connect.py",
    "database/backlog.py",
    "live/gateway.py",
    "live/instance.py",
    "live/loop.py",
    "live/main.py",
    "live/serving.py",
    "live/stores.py",
    "live/wall_clock.py",
    "live/__init__.py",
    "llm/aiohttp_transport.py",
    "queues/connect.py",
    "instances/child_process.py",
    "instances/local_process.py",
    "instances/process_usage.py",
}
# Elsewhere, single lines may differ: a race that only the machine decides, a clean-up after it.
FEW_LINES = 12
# What starts private servers for a live run is the harness, as the rest of it in `loadtests`, and not the system under study.
HARNESS = "live/services/"

# A run that meets what a live system meets: failures, retries, impatient clients, cache hits, scaling, budgets.
OVERRIDES: dict[str, object] = {
    "horizon_s": 12,
    "endpoint.faults": [
        {"kind": "529", "probability": 0.1},
        {"kind": "429", "probability": 0.05, "retry_after_s": 0.2},
        {"kind": "drop_stream", "probability": 0.05},
        {"kind": "drop_connection", "probability": 0.05},
    ],
    "workload.patience_s": {"kind": "exponential", "mean": 1.0},
    "workload.prompts": {"kind": "zipf", "exponent": 1.0, "prompts": 40, "share": 0.7},
    "deployment.database.ledger": "memory",
    "deployment.database.budgets_usd": {"default": 5.0},
}

Lines = dict[str, set[int]]


def executed(folder: Path, *command: str) -> Lines:
    """Lines of `reference_impl` that `command` and all of its child processes execute, by file."""
    folder.mkdir()
    settings = folder / "coveragerc"
    settings.write_text(
        f"[run]\nsource = {SOURCE}\nparallel = true\ndata_file = {folder / 'lines'}\ncore = ctrace\n"
    )
    result = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=os.environ | {"COVERAGE_PROCESS_START": str(settings), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    lines: Lines = defaultdict(set)
    for path in folder.glob("lines.*"):
        data = CoverageData(str(path))
        data.read()
        for measured in data.measured_files():
            name = str(Path(measured).relative_to(SOURCE))
            if not name.startswith(HARNESS):
                lines[name].update(data.lines(measured) or ())
    return lines


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> tuple[Lines, Lines]:
    folder = tmp_path_factory.mktemp("lines")
    scenario = folder / "scenario.yaml"
    scenario.write_text(to_yaml(load_scenario("demo", OVERRIDES)))
    live = executed(
        folder / "live",
        *(
            "-c",
            "import twinload; twinload.main()",
            "swarm",
            str(scenario),
            "--out",
            "run",
            "--json",
        ),
    )
    virtual = executed(
        folder / "virtual", "-m", "tests.parity.virtual_runs", str(scenario), str(folder / "runs")
    )
    return live, virtual


def test_nine_lines_in_ten_that_run_live_run_in_virtual_time_too(
    lines: tuple[Lines, Lines],
) -> None:
    live, virtual = lines
    all_live = sum(map(len, live.values()))
    shared = sum(len(found & virtual.get(name, set())) for name, found in live.items())
    print(
        f"{shared} of {all_live} lines that run live run in virtual time: {shared / all_live:.1%}"
    )
    assert all_live > 3000
    assert shared / all_live >= 0.90


def test_what_runs_live_only_is_adapters_and_they_are_listed(lines: tuple[Lines, Lines]) -> None:
    live, virtual = lines
    only_live = {name: len(found - virtual.get(name, set())) for name, found in live.items()}
    assert {name for name, count in only_live.items() if count > FEW_LINES} <= ADAPTERS
    assert {name for name in live if name not in virtual} <= ADAPTERS
