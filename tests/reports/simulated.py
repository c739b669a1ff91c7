"""Runs of presets in virtual time, for tests of what a report says of the real thing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from reports.run import Run, load_run
from simulation.experiments.virtual_run import Provenance, run_virtual
from simulation.scenario.spec import load_scenario
from simulation.scenario.workload import compile_workload


def simulated(folder: Path, preset: str, changes: Mapping[str, object]) -> Run:
    scenario = load_scenario(preset, changes)
    run_virtual(scenario, compile_workload(scenario), folder, Provenance())
    return load_run(folder)
