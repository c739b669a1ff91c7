"""Plays a scenario in both virtual worlds: `python -m tests.parity.virtual_runs SCENARIO.yaml FOLDER`."""

from __future__ import annotations

import sys
from pathlib import Path

from reference_impl.telemetry.run_folder import RunWriter, read_events, read_requests, read_stations
from reference_impl.telemetry.trace_log import read_traces
from simulation.scenario.spec import load_scenario
from simulation.scenario.workload import compile_workload
from simulation.world import simulate
from tests.parity.wire import play_wire

INSTANCE_FAULTS = [
    {"kind": "instance_crash", "at_s": 3, "duration_s": 2},
    {"kind": "instance_hang", "at_s": 6, "duration_s": 4},
]


def main(scenario_file: str, folder: Path) -> None:
    scenario = load_scenario(scenario_file)
    with RunWriter(folder / "objects") as run:
        simulate(scenario, compile_workload(scenario), run)
    read_requests(folder / "objects")
    read_stations(folder / "objects")
    read_events(folder / "objects")
    # Live, an instance may die or fall silent by itself; here it is told to.
    broken = load_scenario(scenario_file, {"faults": INSTANCE_FAULTS})
    with RunWriter(folder / "broken") as run:
        simulate(broken, compile_workload(broken), run)
    play_wire(scenario, folder / "bytes")
    for log in sorted((folder / "bytes").glob("traces-*.jsonl")):
        list(read_traces(log))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
