"""One virtual run, from scenario to run folder; and the replay of a live run at the instants that it really sent."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from reference_impl.telemetry.run_folder import RunWriter, read_requests
from simulation.scenario.errors import ScenarioError
from simulation.scenario.manifest import Manifest
from simulation.scenario.schema import Scenario, scenario_sha256
from simulation.scenario.workload import CompiledWorkload
from simulation.world import SimulationSummary, simulate

__all__ = ["WORKLOAD_FILE", "Provenance", "live_arrivals", "run_virtual"]

WORKLOAD_FILE: Final = "workload.npz"


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """What only the edge of the program knows of a run; see `Manifest`."""

    commit: str = ""
    versions: dict[str, str] = {}
    machine: dict[str, str | int | float] = {}
    started_at: str = ""


def run_virtual(
    scenario: Scenario,
    workload: CompiledWorkload,
    out: Path,
    provenance: Provenance,
    *,
    on_progress: Callable[[float, int], None] | None = None,
    max_events: int | None = None,
    wall_clock_limit_s: float | None = None,
    wall_clock: Callable[[], float] | None = None,
) -> SimulationSummary:
    """Simulate into the run folder `out`. A run that is cut short keeps what was recorded, marked incomplete.

    Raises FileExistsError if `out` holds a run already, and what `simulate` raises.
    """
    with RunWriter(out) as run:
        manifest = Manifest(
            world="virtual",
            scenario=scenario.model_dump(mode="json"),
            scenario_sha256=scenario_sha256(scenario),
            workload_sha256=workload.sha256,
            seed=scenario.seed,
            commit=provenance.commit,
            versions=provenance.versions,
            machine=provenance.machine,
            started_at=provenance.started_at,
        )
        manifest.write(out)
        workload.save(out / WORKLOAD_FILE)
        summary = simulate(
            scenario,
            workload,
            run,
            on_progress=on_progress,
            max_events=max_events,
            wall_clock_limit_s=wall_clock_limit_s,
            wall_clock=wall_clock,
        )
    msgspec.structs.replace(manifest, complete=True).write(out)
    return summary


def live_arrivals(live: Path) -> CompiledWorkload:
    """The workload of the live run in folder `live`, with its measured `sent_s` as the arrivals.

    So both systems are asked the same at the same instants, and the injector's lag is no part of the comparison.
    Raises ScenarioError where the folder is not a run that can be replayed.
    """
    try:
        requests = read_requests(live, ["request_id", "sent_s"])
    except (OSError, ValueError) as error:
        raise ScenarioError(f"{live}: not a run that can be replayed: {error}") from None
    workload = CompiledWorkload.load(live / WORKLOAD_FILE)
    sent_s = np.full(len(workload), np.nan)
    ids = requests["request_id"].to_numpy()
    known = (ids >= 0) & (ids < len(workload))
    sent_s[ids[known]] = requests["sent_s"].to_numpy()[known]
    return workload.replaying(sent_s)
